"""What decoding multiplies and draws in C++: torch.ops.rlhf.linear and sample_rows, against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_core import kernels
from rlhf_core.kernels.native.products import widens

from .compiled import near, needs_cpu, same, stridden, threads

pytestmark = needs_cpu("token_logprobs")

DTYPES = [torch.float32, torch.float64, *([] if widens(torch.bfloat16) else [torch.bfloat16])]


def head(rows: int, size: int, vocabulary: int, dtype: torch.dtype, bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    hidden, weight = torch.randn(rows, size) / 4, torch.randn(vocabulary, size) / math.sqrt(size) * 4
    return hidden.to(dtype), weight.to(dtype), torch.randn(vocabulary).to(dtype) if bias else None


def distribution(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """``[rows,vocabulary]`` probabilities in float64."""
    logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    return (logits / temperature).softmax(-1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("size", "vocabulary"), [(33, 50), (64, 517), (96, 1000), (700, 2049), (32, 1)])
def test_words_are_where_the_uniform_numbers_fall(size: int, vocabulary: int, bias: bool, dtype: torch.dtype) -> None:
    """The inverse of the distribution function, but for numbers next to a step of it; and the words' log-probs."""
    for rows, temperature in ((1, 1.0), (37, 0.7), (150, 2.0)):
        given = head(rows, size, vocabulary, dtype, bias)
        uniform = torch.rand(rows, dtype=torch.float64)
        words, logprobs = torch.ops.rlhf.sample_rows(*given, temperature, uniform)
        steps = distribution(*given, temperature).cumsum(-1)
        near_a_step = (steps - uniform[:, None]).abs().min(1).values < 1e-5
        wanted = torch.searchsorted(steps, uniform[:, None], right=True)[:, 0].clamp(max=vocabulary - 1)
        assert torch.equal(words[~near_a_step], wanted[~near_a_step]) and near_a_step.sum() <= 1 + rows // 5
        assert (words >= 0).all() and (words < vocabulary).all()
        hidden, weight, added = given
        found = kernels.token_logprobs(hidden, weight, words, bias=added, temperature=temperature, backend="cpu")
        torch.testing.assert_close(logprobs, found, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_follow_the_distribution(dtype: torch.dtype) -> None:
    """A χ² statistic of 4,000 words; and of 4,000 evenly spread numbers every word gets its share to within 2."""
    hidden, weight, bias = head(1, 64, 130, dtype, True)
    rows, expected = hidden.expand(4000, 64), 4000 * distribution(hidden, weight, bias, 1.5)[0]
    drawn, _ = torch.ops.rlhf.sample_rows(rows, weight, bias, 1.5, torch.rand(4000, dtype=torch.float64))
    counts, big = torch.bincount(drawn, minlength=130), expected > 5
    observed = torch.cat([counts[big], counts[~big].sum()[None]]).double()
    wanted = torch.cat([expected[big], expected[~big].sum()[None]])
    statistic, freedom = float(((observed - wanted) ** 2 / wanted).sum()), int(big.sum())
    assert freedom > 20 and statistic < freedom + 4 * math.sqrt(2 * freedom)
    even = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn, _ = torch.ops.rlhf.sample_rows(rows, weight, bias, 1.5, even)
    assert (torch.bincount(drawn, minlength=130) - expected).abs().max() < 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [3, 64, 517, 2049])
def test_the_ends_of_the_distribution(vocabulary: int, dtype: torch.dtype) -> None:
    """0 gives the first word and 1 − 2⁻⁵³ one at the end; a bias of −inf is never drawn, wherever it is."""
    hidden, weight, bias = head(40, 64, vocabulary, dtype, True)
    hidden = hidden / 8  # no word is much less likely than others
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64).repeat(20)
    words, logprobs = torch.ops.rlhf.sample_rows(hidden, weight, bias, 1.0, ends)
    assert (words[::2] == 0).all() and (words[1::2] >= vocabulary - 1 - vocabulary // 500).all()
    assert logprobs.isfinite().all()
    for never in (slice(0, vocabulary // 3), slice(vocabulary // 2, None), slice(0, vocabulary - 1), slice(1, None)):
        masked = bias.clone()
        masked[never] = -math.inf
        for uniform in (ends, torch.rand(40, dtype=torch.float64)):
            words, logprobs = torch.ops.rlhf.sample_rows(hidden, weight, masked, 1.0, uniform)
            assert masked[words].isfinite().all() and logprobs.isfinite().all()


def test_small_shares_at_the_end_of_a_large_vocabulary_are_drawn() -> None:
    """Words of 1e-7 each that make a half together: added up in float32, words would lose their share."""
    vocabulary = 2**18
    weight = torch.zeros(vocabulary, 32)
    bias = torch.zeros(vocabulary)
    bias[0] = math.log(vocabulary - 1)
    uniform = torch.linspace(0.5, 1 - 1e-6, 64, dtype=torch.float64)
    words, _ = torch.ops.rlhf.sample_rows(torch.zeros(64, 32), weight, bias, 1.0, uniform)
    wanted = (uniform - 0.5) * 2 * (vocabulary - 1)
    assert (words[1:] - wanted[1:]).abs().max() < vocabulary * 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_draw_does_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    """Nor on strides or threads."""
    hidden, weight, bias = head(300, 64, 1000, dtype, True)
    uniform = torch.rand(300, dtype=torch.float64)
    whole = torch.ops.rlhf.sample_rows(hidden, weight, bias, 0.8, uniform)
    for picked in (torch.randperm(300), torch.tensor([7]), torch.arange(40, 170)):
        for count in (1, 2):
            with threads(count):
                part = torch.ops.rlhf.sample_rows(hidden[picked], weight, bias, 0.8, uniform[picked])
            assert all(torch.equal(a[picked], b) for a, b in zip(whole, part, strict=True))
    for way in ("last", "rows", "shifted", "swapped"):
        odd = (stridden(hidden)[way], stridden(weight)[way], torch.stack([bias] * 2, 1)[:, 0])
        part = torch.ops.rlhf.sample_rows(*odd, 0.8, torch.stack([uniform] * 2, 1)[:, 0])
        assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))
    words, logprobs = torch.ops.rlhf.sample_rows(hidden[:0], weight, bias, 0.8, uniform[:0])
    assert words.shape == logprobs.shape == (0,)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("weight", {"weight": torch.zeros(5, 4)}),
        ("bias", {"bias": torch.zeros(4)}),
        ("uniform", {"uniform": torch.zeros(2)}),
        ("uniform", {"uniform": torch.zeros(3, dtype=torch.float64)}),
        ("temperature", {"temperature": 0.0}),
    ],
)
def test_bad_input_is_named(argument: str, changes: dict[str, Tensor]) -> None:
    good = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "bias": None, "temperature": 1.0}
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        torch.ops.rlhf.sample_rows(**good | {"uniform": torch.zeros(2, dtype=torch.float64)} | changes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [2, 34, 64, 130, 700])
def test_linear(size: int, bias: bool, dtype: torch.dtype) -> None:
    for rows in (1, 3, 16, 37, 256):
        for outputs in (1, 15, 64, 100, 333):
            given = [torch.randn(rows, size), torch.randn(outputs, size), torch.randn(outputs) if bias else None]
            given = [None if x is None else x.to(dtype) for x in given]
            found = torch.ops.rlhf.linear(*given)
            exact = F.linear(*(None if x is None else x.double() for x in given))
            # Some processors' products are one chain of sums: its rounding grows with the root of its length.
            near({"out": found}, {"out": F.linear(*given)}, {"out": exact}, dtype, max(1e-6, size**0.5 * 2**-24))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_of_no_rows(dtype: torch.dtype) -> None:
    assert torch.ops.rlhf.linear(torch.zeros(0, 64, dtype=dtype), torch.zeros(5, 64, dtype=dtype), None).shape == (0, 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_strides_and_threads(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((200, 96), (333, 96), (333,)))
    whole = {"out": torch.ops.rlhf.linear(x, weight, bias)}
    for way in ("last", "rows", "shifted", "swapped"):
        odd = (stridden(x)[way], stridden(weight)[way], torch.stack([bias] * 2, 1)[:, 0])
        for count in (1, 2):
            with threads(count):
                same({"out": torch.ops.rlhf.linear(*odd)}, whole)
    picked = torch.tensor([150, 3, 77])
    assert torch.equal(torch.ops.rlhf.linear(x[picked], weight, bias), whole["out"][picked])


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("x", (torch.zeros(2, 3), torch.zeros(5, 3), None)),
        ("x", (torch.zeros(6), torch.zeros(5, 6), None)),
        ("weight", (torch.zeros(2, 4), torch.zeros(5, 6), None)),
        ("weight", (torch.zeros(2, 4), torch.zeros(5, 4).double(), None)),
        ("bias", (torch.zeros(2, 4), torch.zeros(5, 4), torch.zeros(4))),
        ("x", (torch.zeros(2, 4).half(), torch.zeros(5, 4).half(), None)),
    ],
)
def test_bad_linear_input_is_named(argument: str, given: tuple[Tensor, Tensor, Tensor | None]) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        torch.ops.rlhf.linear(*given)
