"""``key=value`` words, as everywhere on the command line of ``rlhf``; a value may be a list: ``op=a,b``."""

from collections.abc import Iterable, Mapping, Sequence

from ..errors import UserError
from ..plugins import did_you_mean


def nearest(word: str, known: Iterable[str]) -> str:
    """``". Did you mean X?"``: the nearest, or one that ``word`` is a part of."""
    there = list(known)
    return did_you_mean(word, there) or next((f". Did you mean {name}?" for name in there if word and word in name), "")


def pairs(command: str, words: Sequence[str], keys: Iterable[str]) -> dict[str, str]:
    """The values by key.

    Raises:
        UserError: a word that is no pair, a key that ``command`` does not have, or one given twice.
    """
    known, found = list(keys), dict[str, str]()
    for word in words:
        key, equals, value = word.partition("=")
        if key not in known:
            there = ", ".join(f"{name}=…" for name in known)
            raise UserError(f"{word}: {command} has no such key; there are: {there}{nearest(key, known)}")
        if not equals or not value:
            raise UserError(f"{word}: {key} takes a value, as {key}=…")
        if key in found:
            raise UserError(f"{word}: {key} is given twice; a list is written {key}=a,b")
        found[key] = value
    return found


def listed(values: Mapping[str, str], key: str, choices: Iterable[str] = ()) -> tuple[str, ...]:
    """The parts of a list, each once; without the key, none.

    Raises:
        UserError: a part is empty, or none of ``choices``.
    """
    if key not in values:
        return ()
    known = list(choices)
    parts = tuple(dict.fromkeys(values[key].split(",")))
    for part in parts:
        if not part or (known and part not in known):
            there = f"; there are: {', '.join(known)}{nearest(part, known)}" if known else ""
            raise UserError(f"{key}={part}: no such {key}{there}")
    return parts


def one_of(values: Mapping[str, str], key: str, choices: Sequence[str], default: str) -> str:
    """One word of ``choices``."""
    found = listed(values, key, choices) or (default,)
    if len(found) > 1:
        raise UserError(f"{key}={values[key]}: takes one of {', '.join(choices)}")
    return found[0]


def positive(values: Mapping[str, str], key: str, default: float) -> float:
    """A number above zero."""
    text = values.get(key, str(default))
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"{key}={text}: expected a number above 0")
    return number


def count(values: Mapping[str, str], key: str, default: int) -> int:
    """A whole number above zero."""
    number = positive(values, key, default)
    if number != int(number):
        raise UserError(f"{key}={values[key]}: expected a whole number")
    return int(number)
