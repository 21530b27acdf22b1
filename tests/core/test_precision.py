"""What models compute in: the choice, what autocast does to weights and to our ops, and what a run says of it."""

import json

import pytest
import torch

from rlhf_core import kernels, precision
from rlhf_core.batch import Packed
from rlhf_core.errors import UserError
from rlhf_core.hydra_glue import compose_train
from rlhf_core.language_model import LanguageModel, hidden_states
from rlhf_core.precision import choose, compute_dtype, computing
from rlhf_core.run import train
from rlhf_core.scalar_model import ScalarModel

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def _auto():
    """Each test starts from the default choice and leaves it."""
    choose("auto")
    yield
    choose("auto")


@pytest.fixture
def ours(new_model, tokenizer):
    """A Llama whose heads the compiled attention takes."""
    return LanguageModel(new_model("llama", hidden_size=64, num_attention_heads=2, num_key_value_heads=1), tokenizer)


ROW = Packed.answers([[5, 6, 7]] * 3 + [[8, 9]], [[10, 11, 12], [13], [14, 15], [16, 17]])


def test_a_wrong_choice_is_one_line_and_changes_nothing(ours):
    choose("bfloat16")
    with pytest.raises(UserError) as caught:
        choose("bf16")
    assert str(caught.value) == "precision: got 'bf16', expected one of auto, float32, bfloat16"
    assert compute_dtype(ours.model) == BFLOAT16


def test_a_wrong_choice_of_a_run_is_refused(start, checkpoints):
    with pytest.raises(UserError, match=r"^precision: got 'half', expected one of auto, float32, bfloat16$"):
        start("algorithm=sft", "policy=hf", f"policy.path={checkpoints['llama']}", "precision=half")


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize(("name", "small", "large"), [
    ("float32", None, None), ("bfloat16", BFLOAT16, BFLOAT16), ("auto", None, "where the processor has it"),
])  # fmt: skip
def test_choices(ours, monkeypatch, has, name, small, large):
    """``None`` is: what the weights are."""
    monkeypatch.setattr(precision, "BF16", has)
    count = sum(parameter.numel() for parameter in ours.model.parameters())
    choose(name)
    monkeypatch.setattr(precision, "LARGE", count + 1)
    assert compute_dtype(ours.model) == small
    monkeypatch.setattr(precision, "LARGE", count)
    assert compute_dtype(ours.model) == ((BFLOAT16 if has else None) if isinstance(large, str) else large)


def test_weights_that_are_not_float32_are_left_alone(ours):
    choose("bfloat16")
    assert compute_dtype(ours.model.double()) is None
    assert compute_dtype(torch.nn.Identity()) is None


def test_small_models_are_computed_in_float32_by_default(ours):
    assert compute_dtype(ours.model) is None
    assert hidden_states(ours.model, ROW).dtype == FLOAT32


def test_autocast_is_on_inside_alone(ours):
    choose("bfloat16")
    with computing(ours.model) as dtype:
        assert dtype == BFLOAT16 and torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(KeyError), computing(ours.model):
        raise KeyError
    assert not torch.is_autocast_enabled("cpu")
    choose("float32")
    with torch.autocast("cpu", BFLOAT16), computing(ours.model) as dtype:  # the choice goes before what is around it
        assert dtype is None and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bfloat16_rounds_products_and_keeps_results_in_float32(new_model, tokenizer, kind):
    sizes = {"n_embd": 64} if kind == "gpt2" else {"hidden_size": 64, "num_attention_heads": 2}
    model = LanguageModel(new_model(kind, **sizes), tokenizer)
    with torch.no_grad():
        exact, entropy = model.logprobs_and_entropy(ROW)
        choose("bfloat16")
        rounded, rounded_entropy = model.logprobs_and_entropy(ROW)
        assert hidden_states(model.model, ROW).dtype == BFLOAT16
    assert rounded.dtype == rounded_entropy.dtype == FLOAT32
    assert 1e-5 < float((exact - rounded).abs().max()) < 0.1
    assert 1e-5 < float((entropy - rounded_entropy).abs().max()) < 0.1
    assert bool((rounded <= 0).all())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_and_what_adam_keeps_stay_float32(new_model, tokenizer, kind):
    """Also updates far below what bfloat16 resolves arrive."""
    choose("bfloat16")
    model = LanguageModel(new_model(kind), tokenizer)
    before = {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=1e-6, weight_decay=0.0)
    (-model.logprobs(ROW).sum()).backward()
    for name, parameter in model.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == FLOAT32, name
        assert bool(parameter.grad.isfinite().all()), name
    optimizer.step()
    for name, parameter in model.model.named_parameters():
        assert parameter.dtype == FLOAT32
        moved = (parameter.detach() - before[name]).abs().max()
        assert 0 < float(moved) < 2e-6, name
    kept = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert kept and {value.dtype for value in kept} == {FLOAT32}


def test_gradients_are_those_of_float32_within_rounding(ours):
    def gradients(name):
        choose(name)
        ours.model.zero_grad()
        (-ours.logprobs(ROW).sum()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in ours.model.parameters()])

    exact, rounded = gradients("float32"), gradients("bfloat16")
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).norm() / exact.norm()) < 0.03


def test_scores_are_float32_by_a_float32_head(checkpoints):
    from rlhf_plugins.policy.hf import HF

    scalar = HF(path=str(checkpoints["llama"])).scalar_model().eval()
    assert isinstance(scalar, ScalarModel)
    torch.manual_seed(0)
    scalar.reset_head(0.5)
    choose("bfloat16")
    with torch.no_grad():
        found = scalar.last(ROW)
        hidden = hidden_states(scalar.model, ROW)
        assert hidden.dtype == BFLOAT16 and scalar.head.weight.dtype == found.dtype == FLOAT32
        rows = ROW.folded.unfolded(hidden)[ROW.cu_seqlens[1:].long() - 1]
        torch.testing.assert_close(found, (rows.double() @ scalar.head.weight[0].double()).float())


@pytest.mark.parametrize("backend", ["eager", None])
def test_ops_compute_in_what_they_are_given_under_autocast(backend):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 32), torch.randn(50, 32), torch.randint(0, 50, (9,))
    q, k = torch.randn(9, 4, 32), torch.randn(9, 2, 32)
    ends = torch.tensor([0, 4, 9], dtype=torch.int32)

    def forward():
        leaf = hidden.clone().requires_grad_()
        found = kernels.token_logprobs(leaf, weight, targets, entropy=True, backend=backend)
        return leaf, (*found, kernels.attention(q, k, k, ends, backend=backend))

    leaf, plain = forward()
    with torch.autocast("cpu", BFLOAT16):
        assert torch.nn.functional.linear(hidden, weight).dtype == BFLOAT16  # autocast is on
        other, under = forward()
    for one, two in zip(plain, under, strict=True):
        assert one.dtype == two.dtype == FLOAT32 and torch.equal(one, two)
    gradients = [torch.autograd.grad(sum(part.sum() for part in found[:2]), of)[0] for of, found in
                 ((leaf, plain), (other, under))]  # fmt: skip
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["auto", "float32", "bfloat16"])
def test_a_run_says_what_it_was_computed_in(data, checkpoints, tmp_path, name):
    policy = ["policy=hf", f"policy.path={checkpoints['llama']}", "algorithm=sft", "trainer.max_steps=1"]
    train(compose_train([*data, *policy, "device=cpu", f"precision={name}"], tmp_path / "run"))
    found = json.loads((tmp_path / "run" / "env.json").read_text())["precision"]
    assert found.pop("processor") == ("multiplies bfloat16" if precision.BF16 else "does not multiply bfloat16")
    used = "torch.bfloat16" if name == "bfloat16" else "torch.float32"
    assert found == {"choice": name, "autocast_from_parameters": str(precision.LARGE), "used": used}


def test_what_was_used_is_unknown_without_a_model():
    assert "used" not in precision.describe(None)
