"""Metrics for TensorBoard, beside ``metrics.jsonl``."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rlhf_core.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass
class TensorBoard:
    """Event files that ``tensorboard --logdir RUN`` shows; the tags are ``train/<metric>`` and ``eval/<metric>``."""

    rlhf_api: ClassVar[int] = 1

    folder: str | None = None  # where event files go; null: the folder tensorboard/ of the run

    def start(self, folder: Path) -> None:
        """Take the run's folder, and check that TensorBoard is installed."""
        if find_spec("tensorboard") is None:
            raise UserError("tracker=tensorboard needs the package tensorboard: pip install rlhf-core[tensorboard]")
        self._folder = Path(self.folder) if self.folder else folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def log(self, step: int, metrics: dict[str, float], phase: str) -> None:
        """Add one row of metrics."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # raises without tensorboard: `start` says it better

            # A resumed run repeats the steps after its checkpoint; what was written of them before is hidden.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(f"{phase}/{name}", value, step)

    def close(self) -> None:
        """Write what is buffered."""
        if getattr(self, "_writer", None) is not None:
            self._writer.close()
