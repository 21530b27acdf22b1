"""What each kind of plugin is: one Protocol a file."""
