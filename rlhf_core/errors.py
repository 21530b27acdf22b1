"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input. The message is one line: the key or argument, what came, what was expected, the remedy."""
