"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input. The message is one line: the key or argument, what came, what was expected, the remedy."""


def at_least(least: float, **settings: float) -> None:
    """Refuse settings below ``least``; two underscores in a name stand for a dot."""
    for name, value in settings.items():
        if value < least:
            raise UserError(f"{name.replace('__', '.')}: got {value:g}, expected at least {least:g}")
