"""The one exception whose message is meant for the person at the keyboard."""

from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line: the key or argument, what came, what was expected, the remedy."""


def at_least(least: float, **settings: float) -> None:
    """Refuse settings below ``least``; two underscores in a name stand for a dot."""
    for name, value in settings.items():
        if value < least:
            raise UserError(f"{name.replace('__', '.')}: got {value:g}, expected at least {least:g}")


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of ``choices`` for the setting ``key``."""
    if value not in choices:
        raise UserError(f"{key}: got {value!r}, expected {' or '.join(choices)}")
