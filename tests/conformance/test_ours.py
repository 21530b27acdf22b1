"""Our kernels agree with every check, on every backend that is here."""

import pytest

from rlhf_core.conformance.adapters import ours
from rlhf_core.conformance.checks import CHECKS
from rlhf_core.conformance.run import ask


@pytest.mark.parametrize("variant", ours.VARIANTS)
def test_ours_agrees(variant):
    try:
        implementation = ours.implementation(variant)
    except NotImplementedError as error:
        pytest.skip(f"{variant}: {error}")
    results = [ask(implementation, check) for check in CHECKS]
    assert {r.check.id: (r.status, r.difference, r.reason) for r in results if r.status != "agrees"} == {}


def test_a_backend_is_the_one_that_computes():
    """Not another one behind its back."""
    from rlhf_core import kernels

    (check,) = [check for check in CHECKS if check.id == "gae.two_rows"]
    kernels.set_backend()
    assert ask(ours.implementation("ours.eager"), check).status == "agrees"
    assert kernels.used()["shaped_gae"]["backend"] == "eager"
