"""What is asked of every tracker.

Where it writes is its own affair; a check that reads looks for telling words and numbers in whatever files there are.
"""

import sys
from collections.abc import Sequence
from copy import deepcopy
from math import inf, nan
from pathlib import Path
from typing import Any

from ...contracts.tracker import Tracker
from ..check import Checks, NotApplicable, fail_if, naming
from ..world import World
from .random_state import RandomState

CHECKS = check = Checks()

THE_RUNS_OWN = (
    "config.yaml", "overrides.txt", "plugins.json", "env.json", "metrics.jsonl", "timing.jsonl", "log.txt",
    "samples.jsonl", "summary.json", "checkpoints/step_000001/state.safetensors", "result/config.json",
)  # fmt: skip
STEP = 1000
"""Steps are multiples of it, so that a tracker that takes every tenth step takes all."""
TRAINED = 119
"""rows of training, and 15 of evaluation beside them: 134, which is no multiple of a usual buffer"""

Row = tuple[int, dict[str, Any], str]
"""Step, metrics, phase."""


@check(
    "a run from its start to its end",
    why="each row that the run writes is handed to every tracker: one that raises ends the run",
    cure="take what start, log and close are handed as it is: a Path, a number, a dict of numbers, train or eval",
)
def follows_a_run(tracker: Tracker, world: World) -> None:
    """An evaluation before the first step, then training, and an evaluation at the end."""
    first = {"loss": 1.5, "reward/quality": 0.25, "best_of_4/win_rate": 0.5, "length": 12}
    rows: list[Row] = [
        (0, first, "eval"),
        (STEP, first, "train"),
        (2 * STEP, first, "train"),
        (2 * STEP, first, "eval"),
    ]
    _follow(tracker, world.new_folder(), rows)


@check(
    "metrics that come and go",
    why="evaluations have other names than training, and some numbers exist only at some steps",
    cure="take each row's names as they come; a table of fixed columns has one row a number: step, phase, name, value",
)
def takes_metrics_that_come_and_go(tracker: Tracker, world: World) -> None:
    """More names, fewer, others, none; then those of later rows are looked for."""
    rows: list[Row] = [
        (STEP, {"common": 1.0}, "train"),
        (STEP, {"common": 1.0, "appeared_later": 2.0}, "train"),
        (2 * STEP, {"other_name/of_eval": 0.5}, "eval"),
        (3 * STEP, {}, "train"),
        (4 * STEP, {"common": 3.0}, "train"),
    ]
    folder = world.new_folder()
    _follow(tracker, folder, rows)
    there = _found(world.folder, ["common", "appeared_later", "of_eval"])
    lost = [name for name, found in there.items() if not found]
    fail_if(there["common"] and bool(lost), f"{' and '.join(lost)} came after the first row, and is in no file")


@check(
    "numbers that are whole, huge, or not finite",
    why="a run that diverges logs NaN, and the row that shows it must not be what ends the run",
    cure='write such numbers as they are, as text ("nan"), or not at all; never raise',
)
def takes_any_number(tracker: Tracker, world: World) -> None:
    """Of each kind by itself."""
    tracker.start(world.new_folder())
    for number, value in enumerate((7, 0, -0.0, True, 1e-300, 1e300, 2**70, nan, inf, -inf)):
        with naming(f"a row with loss={value}"):
            tracker.log(STEP * (1 + number), {"loss": value}, "train")
    tracker.close()


@check(
    "no row is lost",
    why="the last rows are what a run is judged by; those in a buffer that nobody writes are gone",
    cure="write each row in log(), or all that is left in close(); close the file there; keep train and eval apart",
)
def keeps_every_row(tracker: Tracker, world: World) -> None:
    """Numbers of each row are looked for once the tracker is closed; more rows than most buffers hold."""
    rows: list[Row] = []
    for number in range(1, 1 + TRAINED):
        rows.append((STEP * number, {"telling": 4000 + number + 0.5}, "train"))
        if number % 8 == 1:
            rows.append((STEP * number, {"telling": 5000 + number + 0.5}, "eval"))
    _follow(tracker, world.new_folder(), rows)
    marks = [f"{row[1]['telling']}" for row in rows]
    there = _found(world.folder, marks)
    _refuse_empty_files(world.folder)
    if not any(there.values()):
        raise NotApplicable("it writes no file in which numbers can be read")
    lost = [f"step {step} ({phase})" for (step, _, phase), mark in zip(rows, marks, strict=True) if not there[mark]]
    shown = ", ".join(lost if len(lost) <= 4 else [*lost[:2], "…", lost[-1]])
    fail_if(bool(lost), f"{len(lost)} of {len(rows)} rows are in no file after close(): {shown}")


@check(
    "the metrics are left as they were",
    why="the same dict is handed to the next tracker, and kept as the run's last evaluation",
    cure="make a dict of your own: {'step': step, **metrics}",
)
def leaves_the_metrics_as_they_were(tracker: Tracker, world: World) -> None:
    """Names, values and their order."""
    row = {"loss": 1.5, "reward/quality": 0.25, "length": 12.0}
    handed = dict(row)
    _follow(tracker, world.new_folder(), [(STEP, handed, "train")])
    fail_if(list(handed.items()) != list(row.items()), f"log() was handed {row}, and left {handed}")


@check(
    "a run may end before its first row",
    why="a run that fails while it is set up closes its trackers, too: an error there hides the one that matters",
    cure="let close() do nothing where nothing was opened",
)
def closes_without_a_row(tracker: Tracker, world: World) -> None:
    """Start and close."""
    _follow(tracker, world.new_folder(), [])


@check(
    "closing twice is closing once",
    why="a run that is stopped while it ends may close a tracker again",
    cure="let close() do nothing where nothing is open",
)
def closes_twice(tracker: Tracker, world: World) -> None:
    """After a row."""
    _follow(tracker, world.new_folder(), [(STEP, {"loss": 1.0}, "train")])
    tracker.close()


@check(
    "a resumed run goes on, and keeps what was there",
    why="start() is called again with the same folder when a run is resumed; what is lost then cannot be had again",
    cure='append: open(path, "a"), mkdir(exist_ok=True); do not begin the file anew',
)
def goes_on_after_a_resume(tracker: Tracker, world: World) -> None:
    """Once after a close and once without; what was logged before the checkpoint is looked for afterwards."""
    for killed in (False, True):
        first, second, folder = deepcopy(tracker), deepcopy(tracker), world.new_folder()
        first.start(folder)
        for number in (1, 2, 3):
            first.log(STEP * number, {"from_the_first_part": 4300 + number + 0.5}, "train")
        if not killed:
            first.close()
        marks = ["from_the_first_part", "4301.5", "4302.5"]
        before = _found(world.folder, marks)
        with naming(f"start() in the folder of a run that was {'killed' if killed else 'stopped'}"):
            _follow(second, folder, [(STEP * number, {"from_the_second": 1.0}, "train") for number in (3, 4)])
        after = _found(world.folder, marks)
        lost = [mark for mark in marks if before[mark] and not after[mark]]
        fail_if(bool(lost), f"{' and '.join(lost)} was in a file before the resume, and is in none after it")


@check(
    "two trackers do not mix",
    why="a pipeline has one stage after the other in one process; rows of one run in the folder of another are worse "
    "than none",
    cure="keep files and writers in the instance (self), not in the class or the module",
)
def keeps_runs_apart(tracker: Tracker, world: World) -> None:
    """Two copies at the same time, one closed before the other."""
    one, other = tracker, deepcopy(tracker)
    folders = [world.new_folder(), world.new_folder()]
    one.start(folders[0])
    other.start(folders[1])
    one.log(STEP, {"of_the_first_run": 1.0}, "train")
    other.log(STEP, {"of_the_second_run": 2.0}, "train")
    one.close()
    with naming("log() after another tracker was closed"):
        other.log(2 * STEP, {"of_the_second_run": 3.0}, "train")
    other.close()
    marks = ["of_the_first_run", "of_the_second_run"]
    for folder, mark, own in ((folders[0], marks[1], marks[0]), (folders[1], marks[0], marks[1])):
        fail_if(_found(folder, [mark])[mark], f'the folder of the run that logged "{own}" holds "{mark}"')
    there = _found(world.folder, marks)
    lost = [mark for mark, found in there.items() if not found]
    fail_if(len(lost) == 1, f'"{"".join(lost)}" is in no file, while the other run\'s rows are')


@check(
    "the files of the run are left alone",
    why="metrics.jsonl, checkpoints and the rest are what a run is resumed from, and read by rlhf report",
    cure='write to a file or a folder of your own name: folder / "my_tracker"',
)
def leaves_the_runs_files_alone(tracker: Tracker, world: World) -> None:
    """Their bytes before and after."""
    folder = world.new_folder()
    for name in THE_RUNS_OWN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} as the run wrote it\n")
    _follow(tracker, folder, [(STEP, {"loss": 1.0}, "train"), (STEP, {"accuracy": 1.0}, "eval")])
    for name in THE_RUNS_OWN:
        path = folder / name
        fail_if(not path.is_file(), f"{name}, which the run had written, is gone")
        fail_if(path.read_text(errors="replace") != f"{name} as the run wrote it\n", f"{name} of the run was changed")


@check(
    "the process is left as it was",
    why="a tracker is an observer: a run with it has to train as one without it",
    cure="use paths as they are instead of os.chdir; draw no global random numbers, e.g. take uuid for a name",
)
def leaves_the_process_as_it_was(tracker: Tracker, world: World) -> None:
    """Working directory, random numbers, standard output."""
    folder, streams, states = Path.cwd(), (sys.stdout, sys.stderr), RandomState.unusual()
    _follow(tracker, world.new_folder(), [(STEP, {"loss": 1.0}, "train")])
    fail_if(Path.cwd() != folder, f"the working directory became {Path.cwd().name!r}")
    fail_if((sys.stdout, sys.stderr) != streams, "sys.stdout or sys.stderr was replaced")
    changed = states.changed()
    fail_if(bool(changed), f"the state of {changed} was changed")


def _follow(tracker: Tracker, folder: Path, rows: Sequence[Row]) -> None:
    tracker.start(folder)
    for step, metrics, phase in rows:
        tracker.log(step, metrics, phase)
    tracker.close()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _found(folder: Path, marks: Sequence[str]) -> dict[str, bool]:
    """Which of them are in a file under ``folder``."""
    contents = [path.read_bytes() for path in _files(folder)]
    return {mark: any(mark.encode() in content for content in contents) for mark in marks}


def _refuse_empty_files(folder: Path) -> None:
    files = _files(folder)
    empty = bool(files) and not any(path.stat().st_size for path in files)
    fail_if(empty, f"{', '.join(path.name for path in files)} is empty after close(), with rows logged before")
