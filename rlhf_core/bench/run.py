"""``rlhf bench run``: which cases, on which device, and what becomes of the rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..errors import UserError
from .arguments import count, listed, pairs, positive
from .implementations import Implementation, chosen
from .machine import describe, device_named
from .measure import Setting, measure
from .operation import LENGTHS, MODES, Operation
from .ops import operations, presets
from .results import Results
from .roofs import Roofs, measure_roofs
from .table import Table
from .timing import Budget, clock_of

KEYS = ("op", "impl", "preset", "shape", "dtype", "mode", "lengths", "device", "threads", "reps", "seconds", "out")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Asked:
    """What was typed, checked."""

    cases: list[tuple[Operation, str]]
    implementations: list[Implementation]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    lengths: tuple[str, ...]
    device: torch.device
    threads: int | None
    budget: Budget
    out: Path | None
    by_name: bool


def main(words: Sequence[str]) -> int:
    """Measure, print rows as they come, write the file; 1 where one of ours failed the gate, else 0."""
    asked = ask(words)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    results = run(asked, list(words), Table())
    if asked.out:
        print(f"\nwritten: {asked.out}; rlhf bench report {asked.out} --format html")
    wrong = [row for row in results.rows if row.status == "failed" and row.kind == "ours"]
    return 1 if wrong else 0


def ask(words: Sequence[str]) -> Asked:
    """Understand the command line.

    Raises:
        UserError: a key or a value that is none, or nothing left to measure.
    """
    values = pairs("rlhf bench run", words, KEYS)
    names = listed(values, "op", operations())
    shapes = listed(values, "shape")
    asked_presets = listed(values, "preset", presets()) or ("ci",)
    modes = listed(values, "mode", MODES)
    for name in names:
        if modes and not operations()[name].modes(modes):
            raise UserError(f"mode={values['mode']}: {name} has no gradient; it is measured with mode=fwd")
    return Asked(
        cases=_cases(names, asked_presets, shapes),
        implementations=chosen(listed(values, "impl")),
        dtypes=listed(values, "dtype", DTYPES) or ("float32",),
        modes=modes or ("full",),
        lengths=listed(values, "lengths", LENGTHS) or ("full",),
        device=device_named(values.get("device", "auto")),
        threads=count(values, "threads", 1) if "threads" in values else None,
        budget=Budget(count(values, "reps", 200), positive(values, "seconds", 1.0)),
        out=Path(values["out"]) if "out" in values else None,
        by_name="impl" in values,
    )


def _cases(names: Sequence[str], asked: Sequence[str], shapes: Sequence[str]) -> list[tuple[Operation, str]]:
    """Ops and shapes; ``shape=`` goes before what the presets hold."""
    there = operations()
    found: list[tuple[Operation, str]] = []
    for name in names or there:
        held = dict.fromkeys(shape for preset in asked for shape in there[name].presets.get(preset, ()))
        if names and not held and not shapes:
            having = [preset for preset in presets() if there[name].presets.get(preset)]
            raise UserError(f"preset={','.join(asked)}: has no shapes of {name}; that is in {', '.join(having)}")
        if shapes and (names or held):
            held = dict.fromkeys(shapes)
        for shape in held:
            there[name].sizes(shape)
            found.append((there[name], shape))
    return found


def run(asked: Asked, words: list[str], table: Table) -> Results:
    """Measure all that was asked for."""
    clock = clock_of(asked.device)
    settings = [Setting(asked.device, lengths, asked.budget, clock) for lengths in asked.lengths]
    whole = Setting(asked.device, "full", asked.budget, clock)
    said = [word for word in words if not word.startswith("out=")]  # where it lay on this machine is nobody's business
    results = Results(
        machine=describe(asked.device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings={"words": said, "repetitions": asked.budget.repetitions, "seconds": asked.budget.seconds},
        roofs={},
    )
    table.head(results.machine)
    for name in asked.dtypes:
        roofs = measure_roofs(asked.device, DTYPES[name], clock)
        results.roofs[name] = asdict(roofs)
        table.roofs(name, roofs)
        for operation, shape in asked.cases:
            for setting in settings if operation.sequences else [whole]:
                _case(operation, shape, name, asked, setting, roofs, results, table)
            if asked.out:  # after every case: what was measured before a time limit is kept
                results.save(asked.out)
    table.absent(results.absent)
    return results


def _case(
    operation: Operation, shape: str, dtype: str, asked: Asked, setting: Setting, roofs: Roofs, results: Results,
    table: Table,
) -> None:  # fmt: skip
    present: list[Implementation] = []
    told: set[str] = {entry["impl"] for entry in results.absent if entry["op"] == operation.name}

    def absent(name: str, reason: str) -> None:
        if name not in told:
            told.add(name)
            results.absent.append({"op": operation.name, "impl": name, "reason": reason})

    for one in asked.implementations:
        reason = one.why_not(operation.name, asked.device, DTYPES[dtype])
        if reason is None:
            present.append(one)
        elif asked.by_name or operation.name in one.ops:
            absent(one.name, reason)
    modes = operation.modes(asked.modes)
    for row in measure(operation, shape, DTYPES[dtype], modes, present, setting, roofs, absent):
        results.rows.append(row)
        table.row(row)
