"""What is asked of every data source: its views here, its rows and their order in files of their own."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ...contracts.data import Data
from ...errors import UserError
from ...failure import flat, told
from ..check import Check, Checks, fail, fail_if
from ..world import World
from . import data_order, data_rows
from .data_order import refuse_difference
from .data_reading import SPLITS, VIEWS, looked_at, read, text_of, written

check = Checks()

WORDS = {
    "text": ("text", "document"),
    "prompts": ("prompt", "question"),
    "demonstrations": ("demonstration", "response", "answer"),
    "rankings": ("ranking", "comparison", "preference", "pair"),
}
"""What a view may be called in a message."""
ALL = 50_000
"""Most rows of one split that are read whole."""
PROMPTS = 16
"""So many different prompts are not the same in every split by intent, as a handful of tasks may be."""


@check(
    "each view gives rows, or raises UserError",
    why="whoever asks for a view that a source does not have is told so by a UserError, as one line; anything else "
    "ends a run as a fault of the program",
    cure='raise UserError("this source has only prompts and rankings") from a view that the source lacks',
)
def gives_each_view_or_raises_user_error(data: Data, world: World) -> None:
    """Four views of three splits."""
    data.setup(0)
    for view in VIEWS:
        for split in SPLITS:
            try:
                rows = getattr(data, view)(split)
            except UserError:
                continue
            except Exception as error:
                fail(f"{view}({split!r}) raised {told(error)}")
            fail_if(rows is None, f"{view}({split!r}) gave None")


@check(
    "a view that is lacking says which there are",
    why="who chose the wrong source for an algorithm sees this line, and nothing else, and has to choose by it",
    cure='name what there is: raise UserError("no text; this source has prompts and rankings")',
)
def says_which_views_it_has(data: Data, world: World) -> None:
    """The message names one of them."""
    data.setup(0)
    lacking: dict[str, str] = {}
    there = set()
    for view in VIEWS:
        try:
            getattr(data, view)("train")
            there.add(view)
        except UserError as error:
            lacking[view] = flat(error)
        except Exception:  # another check says so
            continue
    words = {word for view in there for word in WORDS[view]}
    for view, message in lacking.items():
        silent = not any(word in message.lower() for word in words)
        fail_if(bool(there) and silent, f'{view}: "{message}" names none of {", ".join(sorted(there))}')


@check(
    "there is something to train on",
    why="an algorithm that finds no row fails far from the cause, or trains on nothing",
    cure="check that files are found and parsed in setup, and that the split leaves rows for train",
)
def has_rows_to_train_on(data: Data, world: World) -> None:
    """At least one view has rows in train."""
    data.setup(0)
    there = read(data, splits=("train",))
    fail_if(not there, "no view gave rows of train")
    counted = ", ".join(f"{view}: {rows.count}" for (view, _), rows in there.items())
    fail_if(not any(rows.count for rows in there.values()), f"no view has a row in train ({counted})")


@check(
    "a view that is there has rows",
    why="an algorithm that needs this view takes it to be there, and trains on nothing",
    cure="raise UserError from a view that the source lacks, instead of giving an empty list",
)
def lacks_a_view_aloud(data: Data, world: World) -> None:
    """A view that is empty in every split is one that is lacking."""
    data.setup(0)
    there = read(data)
    for view in dict.fromkeys(view for view, _ in there):
        splits = [split for split in SPLITS if (view, split) in there]
        empty = all(not there[view, split].count for split in splits)
        fail_if(empty, f"{view} gave no row in {', '.join(splits)}, and raised nothing")


@check(
    "a view is a sequence: it has a length, and rows by number, also from the end",
    why="rows are counted, shuffled by number and taken at even distances; a generator is empty the second time",
    cure="return a list, or an object with __len__ and __getitem__ that raises IndexError past the end",
)
def gives_sequences(data: Data, world: World) -> None:
    """Length, first, last, negative, past the end, and iteration, against one another."""
    data.setup(0)
    for (view, split), rows in _views(data):
        name = f"{view}({split!r})"
        kind = type(rows).__name__
        fail_if(isinstance(rows, str | bytes), f"{name} gave one {kind}, not a list of rows")
        lacks = [method for method in ("__len__", "__getitem__") if not hasattr(rows, method)]
        fail_if(bool(lacks), f"{name} gave a {kind}, which has no {' and no '.join(lacks)}")
        count = len(rows)
        if count:
            _check_places(name, rows, count)
        if count <= ALL:
            met = sum(1 for _ in islice(iter(rows), count + 1))
            given = "more" if met > count else str(met)
            fail_if(met != count, f"{name} has length {count}, but going through it gives {given} rows")


def _check_places(name: str, rows: Sequence[Any], count: int) -> None:
    for negative, place in ((-1, count - 1), (-count, 0)):
        try:
            from_the_end, row = rows[negative], rows[place]
        except (LookupError, TypeError, ValueError) as error:
            fail(f"{name} has length {count}, but [{negative}] or [{place}] raised {type(error).__name__}: {error}")
        same = text_of(from_the_end) == text_of(row)
        fail_if(not same, f"{name}[{negative}] is {text_of(from_the_end)}, but [{place}] is {text_of(row)}")
    first = next(iter(rows))
    fail_if(
        text_of(first) != text_of(rows[0]),
        f"{name}[0] is {text_of(rows[0])}, but going through it begins with {text_of(first)}",
    )
    try:
        rows[count]
    except IndexError:
        return
    except LookupError as error:
        fail(f"{name} has {count} rows; [{count}] raised {type(error).__name__}, not IndexError")
    fail(f"{name} has {count} rows; [{count}] raised nothing, so that going through it never ends")


@check(
    "the same rows however often they are read",
    why="a view is read anew by whoever needs it, and by a resumed run: rows that move are trained on twice or never",
    cure="make the order in setup, or by a generator that the view itself seeds; use nothing up",
)
def gives_the_same_rows_again(data: Data, world: World) -> None:
    """The view again, and the same object again."""
    data.setup(0)
    for (view, split), rows in _views(data):
        try:
            first = written({(view, split): looked_at(rows)})
        except (LookupError, TypeError):  # no sequence: another check says so
            continue
        if hasattr(rows, "__len__"):
            refuse_difference(
                first, written({(view, split): looked_at(rows)}), "when the same object is gone through again"
            )
        again = written({(view, split): looked_at(getattr(data, view)(split))})
        refuse_difference(first, again, "when the view is read again")


@check(
    "no row of train is held out as well",
    why="what was trained on is remembered: numbers on such rows look good, and say nothing of new ones",
    cure="remove what is there twice before splitting, and split once, in setup: by a hash of the row, or by places of "
    "one shuffled list",
)
def splits_share_no_row(data: Data, world: World) -> None:
    """Documents, demonstrations and rankings, whole; prompts alone may well be asked twice."""
    data.setup(0)
    for view in ("text", "demonstrations", "rankings"):
        trained = _texts(data, view, "train")
        for split in SPLITS[1:]:
            held_out = _texts(data, view, split)
            shared = [number for number, row in enumerate(held_out) if row in trained]
            fail_if(
                bool(shared),
                f"{view}: {len(shared)} of {len(held_out)} rows of {split} are in train, too; the first is row "
                f"{shared[0] if shared else 0}, {list(held_out)[shared[0]] if shared else ''}",
            )


@check(
    "most prompts that are held out are not those of training",
    why="rewards of prompts that were trained on say nothing of new ones",
    cure="split the prompts once, in setup, after removing what is there twice",
)
def holds_out_other_prompts(data: Data, world: World) -> None:
    """Some may be common: short openings are. Not most of them."""
    data.setup(0)
    trained = _texts(data, "prompts", "train")
    for split in SPLITS[1:]:
        held_out = _texts(data, "prompts", split)
        shared = [row for row in held_out if row in trained]
        fail_if(
            len(trained) >= PROMPTS and 2 * len(shared) > len(held_out),
            f"{len(shared)} of {len(held_out)} different prompts of {split} are in train, too, such as "
            f"{shared[0] if shared else ''}",
        )


def _texts(data: Data, view: str, split: str) -> dict[str, None]:
    """All rows of a split as text, each once, in order; none where there is no such view."""
    try:
        rows = getattr(data, view)(split)
        count = min(ALL, len(rows)) if hasattr(rows, "__len__") else ALL
        return {} if isinstance(rows, str) else dict.fromkeys(map(text_of, islice(iter(rows), count)))
    except Exception:  # another check says so
        return {}


def _views(data: Data) -> Iterator[tuple[tuple[str, str], Any]]:
    """Each view that is there, by its name and split."""
    for view in VIEWS:
        for split in SPLITS:
            try:
                rows = getattr(data, view)(split)
            except Exception:  # another check says so
                continue
            if rows is not None:
                yield (view, split), rows


CHECKS: list[Check] = [*check, *data_rows.check, *data_order.check]
