"""What tests of the kit share: a wrong plugin may not spoil the next test."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """Wrong plugins change torch for all."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
