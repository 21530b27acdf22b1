"""One thread, small draws, the same every time."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from rlhf_core import kernels

settings.register_profile(
    "kernels",
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("kernels")


@pytest.fixture(autouse=True)
def _auto_backend():
    """Each test starts from the default choice of backend."""
    kernels.set_backend()
    torch.manual_seed(0)
    yield
    kernels.set_backend()


def reason_without(op: str, backend: str) -> str:
    """Why a backend cannot be tested here, or nothing."""
    return next(row["reason"] for row in kernels.status() if (row["op"], row["backend"]) == (op, backend))


@pytest.fixture(params=["eager", "cpu"])
def gae_backend(request: pytest.FixtureRequest) -> str:
    """Each backend of shaped_gae that is here."""
    if reason := reason_without("shaped_gae", request.param):
        pytest.skip(f"{request.param}: {reason}")
    return request.param
