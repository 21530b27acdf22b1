"""What a stage is that has no steps: the parts of an algorithm that it has no use for."""

from collections.abc import Iterable
from typing import Any, ClassVar

from rlhf_core.contracts.algorithm import Loss


class Untrained:
    """A stage that only looks: everything is done in ``evaluate``, once."""

    total_steps: ClassVar[int] = 0

    def collect(self, step: int) -> Any:
        """There are no steps."""
        raise AssertionError("a stage without training has no steps")

    def minibatches(self, batch: Any) -> Iterable[list[Any]]:
        """There are no steps."""
        return []

    def loss(self, microbatch: Any) -> Loss:
        """There are no steps."""
        raise AssertionError("a stage without training has no loss")

    def metrics(self, batch: Any) -> dict[str, float]:
        """There are no steps."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
