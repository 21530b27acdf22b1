"""A third party's plugins, as a stranger would write them."""
