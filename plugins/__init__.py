"""First-party plugins, one folder a kind, registered through the same entry points as anyone's."""
