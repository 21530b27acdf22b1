"""The registered C++ op: schema, fake tensors, torch.compile, and its own checks."""

import pytest
import torch

from rlhf_core import kernels
from rlhf_core.batch import offsets

pytestmark = pytest.mark.skipif(not kernels.build_info(), reason="the extension is not built")

Arguments = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def arguments(lengths: list[int], dtype: torch.dtype = torch.float32) -> Arguments:
    return torch.randn(len(lengths), dtype=dtype), torch.randn(sum(lengths), dtype=dtype), offsets(lengths)


NOTHING = (None,) * 5
SCALARS = (1.0, 0.95, 0.0, "k1", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.rlhf.shaped_gae.default, (*arguments([3, 0, 20], dtype), *NOTHING, *SCALARS))
    scores, values, sequences = arguments([4, 5], dtype)
    more = (torch.rand(9) < 0.5, torch.randn_like(values), values - 1, values - 2, torch.randn_like(scores))
    torch.library.opcheck(
        torch.ops.rlhf.shaped_gae.default, (scores, values, sequences, *more, 0.9, 0.9, 0.1, "k3", 2.0)
    )


@pytest.mark.parametrize("backend", ["cpu", None])
def test_compiles_whole_with_two_sizes(backend: str | None) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def whitened(scores: torch.Tensor, values: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        found = kernels.shaped_gae(scores, values, sequences, backend=backend)
        return kernels.whitened(found.advantages, found.mean, found.var)

    compiled = torch.compile(whitened, fullgraph=True, dynamic=True, backend=count)
    for lengths in ([3, 0, 20], [1, 2, 3, 4]):
        given = arguments(lengths)
        torch.testing.assert_close(compiled(*given), whitened(*given))
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("position", "bad", "name"),
    [
        (0, torch.zeros(3), "scores"),
        (0, torch.zeros(2, dtype=torch.float64), "scores"),
        (1, torch.zeros(5, dtype=torch.bfloat16), "values"),
        (2, torch.tensor([0, 6, 5], dtype=torch.int32), "cu_seqlens"),
        (2, torch.tensor([0, -2, 5], dtype=torch.int32), "cu_seqlens"),
        (2, torch.tensor([0, 2, 5]), "cu_seqlens"),
        (3, torch.zeros(5), "mask"),
        (5, torch.zeros(5), "ref_logprobs"),
        (7, torch.zeros(1), "bootstrap"),
        (10, 0.5, "kl_coef"),
        (11, "k9", "kl_estimator"),
    ],
)
def test_the_op_itself_refuses_bad_input(position: int, bad: object, name: str) -> None:
    """It can be called without the Python checks, and reads memory."""
    given: list[object] = [torch.zeros(2), torch.zeros(5), offsets([2, 3]), *NOTHING, *SCALARS]
    given[position] = bad
    with pytest.raises(ValueError, match=name):
        torch.ops.rlhf.shaped_gae(*given)
