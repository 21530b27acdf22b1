"""What is asked of the order of every data source: a resumed run has to go on with the rows it would have had."""

import json
import os
import pickle
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

from ...contracts.data import Data
from ..check import Checks, NotApplicable, fail_if, naming
from ..process import seed
from ..world import World
from . import data_reading
from .data_reading import SPLITS, VIEWS, Reading, difference, read, reading_of, written
from .random_state import RandomState

check = Checks()


@check(
    "the same seed gives the same rows in the same order",
    why="a resumed run makes the source anew with the seed of the run, and goes on at the row where it was",
    cure="draw from random.Random(seed), made in setup, and from nothing else: no clock, no global generator",
)
def same_seed_same_order(data: Data, world: World) -> None:
    """Another copy, set up with the same seed, while other plugins drew other numbers in the same way."""
    other = deepcopy(data)
    seed(0)
    first = _read(data)
    seed(0)
    refuse_difference(first, _read(other), "of a copy that is set up with the same seed")


@check(
    "the global random numbers do not move rows",
    why="other plugins draw from them, too: which rows come when would depend on what else is chosen, and on whether "
    "the run was resumed",
    cure="draw from random.Random(seed) or numpy.random.default_rng(seed) of your own, made from setup's seed",
)
def ignores_global_random_numbers(data: Data, world: World) -> None:
    """Other global seeds before setup, and before the views."""
    other = deepcopy(data)
    seed(1)
    first = _read(data)
    seed(2)
    other.setup(0)
    seed(3)
    second = written(read(other))
    refuse_difference(first, second, "with other global random numbers")


@check(
    "the global random numbers are left as they were",
    why="the run seeds them before the source is set up, so that what follows is the same each time; a source that "
    "seeds them anew, or draws from them, changes all of it",
    cure="draw from random.Random(seed) or numpy.random.default_rng(seed) of your own; never call random.seed",
)
def leaves_global_random_numbers_alone(data: Data, world: World) -> None:
    """In setup and in each view; of Python, numpy and torch."""
    before = RandomState.unusual()
    data.setup(0)
    before.refuse_change("setup")
    read(data)
    before.refuse_change("reading the views")


@check(
    "the same rows whichever view is read first",
    why="one algorithm reads demonstrations alone, the next prompts and then rankings: their rows must not depend on "
    "what was read before",
    cure="make a generator of its own for each view and split, e.g. random.Random(f'{seed}/{view}/{split}')",
)
def ignores_which_view_is_read_first(data: Data, world: World) -> None:
    """Forwards and backwards."""
    other = deepcopy(data)
    first = _read(data)
    other.setup(0)
    second = written(read(other, VIEWS[::-1], SPLITS[::-1]))
    refuse_difference(first, second, "when views are read the other way round")


@check(
    "the same rows in the same order in another process",
    why="a resumed run is another process, in which sets, hash() and the file system may have another order",
    cure="sort what comes from a set or from a folder; split by hashlib.sha256, not by hash()",
)
def same_order_in_another_process(data: Data, world: World) -> None:
    """One with other hashes of strings, which the order of sets follows."""
    there = _elsewhere(data, world)
    refuse_difference(_read(data), there, "in another process")


@check(
    "any seed of a run will do",
    why="seed is the user's to choose; experiments are repeated with several",
    cure="take the seed as it is; where a library needs a small one, seed % 2**32",
)
def takes_any_seed(data: Data, world: World) -> None:
    """1, and one that needs more than 32 bits; as many views as with 0."""
    others = {number: deepcopy(data) for number in (1, 2**32 + 1)}
    here = set(_read(data))
    for number, other in others.items():
        with naming(f"setup({number})"):
            other.setup(number)
        lost = sorted(f"{view}({split!r})" for view, split in here - set(read(other)))
        fail_if(bool(lost), f"after setup({number}) there is no {', no '.join(lost)}, which there is after setup(0)")


def _read(data: Data) -> Reading:
    data.setup(0)
    return written(read(data))


def refuse_difference(one: Reading, other: Reading, then: str) -> None:
    """Fail with the first place where two readings are not the same; ``then`` says when the other was made."""
    found = difference(one, other, then)
    fail_if(bool(found), found)


def _elsewhere(data: Data, world: World) -> Reading:
    answer = world.new_folder() / "answer.json"
    here = os.environ.get("PYTHONHASHSEED")
    done = subprocess.run(
        [sys.executable, "-P", data_reading.__file__],
        input=json.dumps(_asked(data, answer)),
        env=os.environ | {"PYTHONHASHSEED": "2" if here == "1" else "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not answer.exists():
        raise NotApplicable(f"another process ended with code {done.returncode} before it could tell")
    found = json.loads(answer.read_text(encoding="utf-8", errors="surrogatepass"))
    if "error" in found:
        raise NotApplicable(f"another process cannot set it up ({found['error']})")
    return reading_of(found["rows"])


def _asked(data: Data, answer: Path) -> dict[str, Any]:
    module = sys.modules[type(data).__module__]
    try:
        pickled = pickle.dumps(data)
    except Exception as error:  # what holds the plugin back is its own affair
        raise NotApplicable(f"another process cannot be handed it ({type(error).__name__}: {error})") from error
    return {
        "path": sys.path,
        "module": module.__name__,
        "file": getattr(module, "__file__", None),
        "pickle": pickled.hex(),
        "seed": 0,
        "answer": str(answer),
    }
