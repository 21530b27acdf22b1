"""The checks as pytest's."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .check import Check
from .checks import checks_of, kind_of
from .runner import attempt

if TYPE_CHECKING:
    import pytest


def parametrize_with_checks(*plugins: Any, kind: str | None = None, device: str = "cpu") -> "pytest.MarkDecorator":
    """A mark that runs a test once for each check of each plugin, as its argument ``check``: call it.

    Args:
        plugins: instances, not set up; each check gets a copy.
        kind: which kind of plugins they are; None: as they are registered, else by their methods.
        device: where models are.

    Raises:
        UserError: nothing tells the kind of one.
    """
    import pytest  # not needed to run a plugin

    cases = [
        pytest.param(_bound(check, plugin, of, device, raised), id=f"{type(plugin).__name__}-{check.name}")
        for plugin, of, raised in [(plugin, kind or kind_of(plugin), dict[str, str]()) for plugin in plugins]
        for check in checks_of(of)
    ]
    return pytest.mark.parametrize("check", cases)


def _bound(check: Check, plugin: Any, kind: str, device: str, raised: dict[str, str]) -> Callable[[], None]:
    def bound() -> None:
        __tracebackhide__ = True
        import pytest

        outcome = attempt(check, plugin, kind, device, raised)
        if outcome.status == "failed":
            pytest.fail(str(outcome), pytrace=False)
        if outcome.status == "skipped":
            pytest.skip(outcome.reason)

    return bound
