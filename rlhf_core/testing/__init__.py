"""A conformance kit for plugins: the checks that ours pass, for anybody's.

In a test file of the plugin's package::

    from my_reward import MyReward
    from rlhf_core.testing import parametrize_with_checks


    @parametrize_with_checks(MyReward(scale=2.0))
    def test_contract(check):
        check()

On the command line, without pytest: ``rlhf check reward=my_reward reward.scale=2``. A check that fails says what was
expected, what came, why it matters and what to do. A plugin that breaks one by design says so, with the reason, in a
class attribute: ``rlhf_checks: ClassVar[dict[str, str]] = {"name_of_the_check": "reason"}``.
"""

from .check import Check, CheckFailed, NotApplicable, Outcome
from .checks import checks_of, kind_of
from .mark import parametrize_with_checks
from .runner import attempt, run_checks
from .world import World

__all__ = [
    "Check", "CheckFailed", "NotApplicable", "Outcome", "World", "attempt", "checks_of", "kind_of",
    "parametrize_with_checks", "run_checks",
]  # fmt: skip
