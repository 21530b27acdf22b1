"""What a run of ``rlhf bench run`` leaves: one JSON file, a row for each op, shape, dtype, mode and implementation."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import UserError

FORMAT = 1
NOISY = 3.0


@dataclass
class Row:
    """One implementation on one case. Times are milliseconds; ``status`` is ``ok``, or ``failed`` with a ``reason``."""

    op: str
    shape: str
    lengths: str
    dtype: str
    device: str
    mode: str
    impl: str
    kind: str
    tokens: int
    status: str = "ok"
    reason: str = ""
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    best_ms: float | None = None
    repetitions: int = 0
    first_ms: float | None = None
    """the first call of all, forward and backward: with what was compiled in it"""
    from_disk: bool = False
    """part of that was found compiled, in torch.compile's cache on disk"""
    speedup: float | None = None
    """eager's median through this one's"""
    speedup_best: float | None = None
    """eager's best through this one's"""
    copied: float | None = None
    """where prompts are shared: the work of a copy of the prompt for each that shares it, through this work"""
    speedup_copies: float | None = None
    """the median of our kernel on such copies through this one's"""
    peak_bytes: int | None = None
    bytes: int = 0
    """the least an implementation has to move"""
    flops: int = 0
    bound: str = "bytes"
    """what the roof is of: bytes or flops"""
    rate: float | None = None
    """of that a second"""
    roof: float | None = None
    """what the machine does at best at a like size"""
    roof_share: float | None = None
    """the time at that roof through the median"""
    dram_share: float | None = None
    """the same with the copy that is far larger than the caches"""
    noise: float = 1.0
    """how much slower that copy was than it can be, in the rounds it took part in: what others on the machine cost"""
    error: float | None = None
    """from the float64 reference, relative to its largest value"""
    eager_error: float | None = None
    """of the eager definition in this dtype"""
    launches: int | None = None
    times_ms: list[float] = field(default_factory=list)

    @property
    def noisy(self) -> bool:
        """Whether the machine was so busy that the times say little."""
        return self.noise > NOISY

    @property
    def case(self) -> tuple[str, ...]:
        """What rows are compared within."""
        return self.op, self.shape, self.lengths, self.dtype, self.device, self.mode

    @property
    def shown_shape(self) -> str:
        """The shape, and whether sequences are ragged."""
        return self.shape if self.lengths == "full" else f"{self.shape} {self.lengths}"


@dataclass
class Results:
    """A run: where, when, how, what was measured, and which implementations were not there."""

    machine: dict[str, Any]
    created: str
    settings: dict[str, Any]
    roofs: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    absent: list[dict[str, str]] = field(default_factory=list)
    """op, impl, reason"""

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        content = {"format": FORMAT, **asdict(self)}
        draft = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(_text(content), encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise UserError(f"out={path}: cannot be written ({error.strerror}); choose another file") from error


def _text(content: dict[str, Any]) -> str:
    """JSON with a measured row a line, so that a diff of two files shows rows."""
    rows = ",\n".join(json.dumps(row) for row in content.pop("rows"))
    return f'{json.dumps(content)[:-1]},\n"rows": [\n{rows}\n]}}\n'


def read(path: Path) -> Results:
    """Read a file that :meth:`Results.save` wrote.

    Raises:
        UserError: there is none, or it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected a file that rlhf bench run wrote"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON; expected a file that rlhf bench run wrote") from error
    if not isinstance(content, dict) or "rows" not in content or "format" not in content:
        raise UserError(f"{path}: holds no benchmark; expected a file that rlhf bench run wrote")
    if content.pop("format") != FORMAT:
        raise UserError(f"{path}: is of another version of rlhf bench; measure again")
    known = {field.name for field in fields(Row)}
    try:
        rows = [Row(**{name: value for name, value in row.items() if name in known}) for row in content.pop("rows")]
        return Results(rows=rows, **content)
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged ({error}); measure again") from error
