"""What the Triton kernels do that no call of an op of a test's size shows; interpreted (``TRITON_INTERPRET=1``)."""

import os

import pytest
import torch
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.batch import offsets

from .cases import build, compare, covering

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")

import triton.language as tl  # noqa: E402

from rlhf_core.kernels.triton import policy_loss, preference_loss, shaped_gae, sums, terms  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy's, where a GPU gives infinity
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # triton 3.6 with numpy 2.3
]


@triton.jit
def _apply(x, y, z, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    slot = tl.arange(0, BLOCK)
    given = tl.load(x + slot)
    if FUNCTION == "exp":
        first, second = terms.exp_of(given)
    elif FUNCTION == "log1p":
        first, second = terms.log1p_of(given), given
    else:
        first, second = terms.negative_log_sigmoid(given)
    tl.store(y + slot, first)
    tl.store(z + slot, second)


def applied(function: str, x: Tensor) -> tuple[Tensor, Tensor]:
    outputs = torch.empty_like(x), torch.empty_like(x)
    _apply[(1,)](x, *outputs, FUNCTION=function, BLOCK=len(x))
    return outputs


def close(found: Tensor, wanted: Tensor, roundings: float) -> None:
    """Relative to each number itself."""
    torch.testing.assert_close(found.double(), wanted, rtol=roundings * 2**-23, atol=1e-37, equal_nan=True)


def test_functions_are_right_to_a_rounding_or_two() -> None:
    wide = torch.cat([torch.linspace(-87, 88, 2000), torch.logspace(-30, 0, 1048), -torch.logspace(-30, 0, 1048)])
    exp, expm1 = applied("exp", wide)
    close(exp, wide.double().exp(), 2)
    close(expm1, wide.double().expm1(), 2)
    unit = torch.cat([torch.linspace(0, 1, 1024), torch.logspace(-30, 0, 1024)])
    close(applied("log1p", unit)[0], unit.double().log1p(), 2)
    loss, slope = applied("negative_log_sigmoid", wide)
    close(loss, -torch.nn.functional.logsigmoid(wide.double()), 3)
    close(slope, torch.sigmoid(-wide.double()), 3)


def test_functions_at_the_ends() -> None:
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan, 89.0, 88.7, -200.0, 0.0, -0.0])
    exp, expm1 = applied("exp", ends)
    torch.testing.assert_close(exp, ends.exp(), equal_nan=True, atol=2e-38, rtol=1e-6)
    torch.testing.assert_close(expm1, ends.expm1(), equal_nan=True)
    loss, slope = applied("negative_log_sigmoid", ends)
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(ends), equal_nan=True)
    torch.testing.assert_close(slope, torch.sigmoid(-ends), equal_nan=True)


@pytest.mark.parametrize(("op", "module"), [("ppo_loss", policy_loss), ("preference_loss", preference_loss)])
def test_programs_take_blocks_in_turn(op: str, module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do from millions of tokens on."""
    monkeypatch.setattr(module, "MOST_PROGRAMS", 2)
    for choice in covering(op)[::6]:
        case = build(op, choice, [2600])
        compare(case.run("triton"), case.run("eager"), case.to(torch.float64).run("eager"))


def test_many_parts_are_added_up() -> None:
    parts = torch.rand(11, 5000)
    loss, metrics = sums.finish(parts, 10, first_mean=5, maximum=8)
    wanted = parts.double().sum(1)
    wanted[5:10] /= wanted[10]
    wanted[8] = parts[8].max()
    torch.testing.assert_close(torch.cat([loss[None], metrics]), wanted[:10].float())
    parts[8, 17] = parts[7, 17] = torch.nan  # a ratio
    assert sums.finish(parts, 10, first_mean=5, maximum=8)[1][7].isnan()


def test_counts_of_millions() -> None:
    mask = torch.zeros(9_000_001, dtype=torch.bool)
    mask[::3] = True
    counts = sums.count_nonzero(mask)
    assert counts.sum() == mask.sum() and len(counts) == sums.MOST_COUNTS.value


def test_offsets_out_of_bounds_touch_nothing_out_of_bounds() -> None:
    """A GPU cannot check them without synchronising. The numbers past the end are what must not be read."""
    scores, held = torch.ones(3), torch.arange(16.0)
    held[5:] = torch.nan
    values = held[:5]
    given = (None, None, None, None, None, 1.0, 0.9, 0.0, "k1", None)
    wanted = shaped_gae.shaped_gae(scores, values, offsets([2, 3, 0]), *given)
    for bad in ([0, 2, 9, 12], [-7, 2, 5, 3]):
        found = shaped_gae.shaped_gae(scores, values, torch.tensor(bad, dtype=torch.int32), *given)
        assert torch.equal(found[0], wanted[0])
        assert held[5:].isnan().all()


def test_a_graph_is_gone_through_twice() -> None:
    """The gradients of the first pass are handed out, and stay as they are."""
    x = torch.randn(40, requires_grad=True)
    loss, _ = kernels.ppo_loss(x, torch.randn(40), torch.randn(40), backend="triton")
    (first,) = torch.autograd.grad(loss, x, torch.tensor(3.0), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    torch.testing.assert_close(first, 3 * second)
    torch.testing.assert_close(torch.autograd.grad(2 * loss, x)[0], 2 * second)
    assert torch.equal(first, kept)


def test_the_op_itself_has_gradients_that_stay() -> None:
    """Who calls it sees them, so they are not scaled in place."""
    scores = torch.randn(5, requires_grad=True)
    given = (offsets([5]), torch.arange(5).double(), None, None, 0.0, 0.0)
    loss, _, gradient = torch.ops.rlhf_triton.ranking_loss(scores, *given)
    kept = gradient.clone()
    torch.testing.assert_close(torch.autograd.grad(loss, scores, torch.tensor(-2.0))[0], -2 * kept)
    assert torch.equal(gradient, kept)
