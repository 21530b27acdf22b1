"""The contract of algorithms, with sizes that train in a moment."""

from reinforce_baseline import ReinforceBaseline

from rlhf_core.testing import parametrize_with_checks


@parametrize_with_checks(ReinforceBaseline(batch_size=32))
def test_contract(check):
    check()
