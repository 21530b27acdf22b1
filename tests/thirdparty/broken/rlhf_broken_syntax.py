"""A plugin that is no Python."""

class Broken
