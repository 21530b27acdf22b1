"""Everything that comes with the package computes what the ops' definitions say, and says why it cannot."""

import pytest
import torch

from rlhf_core.bench.gate import Unequal, check, compared, expected
from rlhf_core.bench.implementations import implementations
from rlhf_core.bench.ops import operations
from rlhf_core.bench.prepared import Prepared
from rlhf_core.kernels import BackendError

CPU = torch.device("cpu")
SHAPES = {
    "shaped_gae": "5x37",
    "ppo_loss": "5x37",
    "grpo_loss": "5x37",
    "ranking_loss": "6x5",
    "preference_loss": "11",
    "attention": "3x37x4x2x32",
    "attention_shared": "2x19x3x7x4x2x32",
    "decode_attention": "5x37x6x2x32",
    "decode_attention_shared": "2x19x3x7x6x2x32",
    "token_logprobs": "700x16x37",  # more rows than the baselines take at a time
    "token_logprobs_entropy": "700x16x37",
    "logprobs_from_logits": "700x37",
    "linear_policy_loss": "700x16x37x40",
}
PAIRS = [(name, op) for name, one in implementations().items() for op in one.ops if op in SHAPES and name != "compile"]


def test_those_of_this_package_are_registered():
    ours = {
        "eager",
        "vectorised",
        "compile",
        "definition",
        "copies",
        "cpu",
        "triton",
        "cuda",
        "torchrl",
        "trl",
        "liger",
        "flash_attn",
        "torch_varlen",
    }
    assert ours <= set(implementations())
    assert next(iter(implementations())) == "eager"


def test_the_ops_of_these_tests_are_all():
    assert set(SHAPES) == set(operations())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", ["full", "ragged"])
@pytest.mark.parametrize(("name", "op"), PAIRS, ids=str)
def test_it_computes_the_op(name, op, lengths, dtype):
    one, operation = implementations()[name], operations()[op]
    if reason := one.why_not(op, CPU, dtype):
        assert reason.strip() and "\n" not in reason
        return
    case = operation.case(SHAPES[op], lengths, dtype, CPU, seed=3)
    prepared = Prepared(case, one.benchmark.prepare(op, case))
    try:
        outputs = prepared.forward()
    except BackendError as reason:  # ours does not take this dtype: the harness says so in place of a row
        assert one.kind == "ours" and str(reason)
        return
    check(operation, compared(operation, prepared, outputs), expected(operation, case), one.kind)


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
@pytest.mark.parametrize("op", ["preference_loss", "linear_policy_loss"])
def test_compile_computes_an_op(op):
    compiled, operation = implementations()["compile"], operations()[op]
    if compiled.why_not(op, CPU, torch.float32):
        return
    case = operation.case(SHAPES[op], "full", torch.float32, CPU, seed=0)
    prepared = Prepared(case, compiled.benchmark.prepare(op, case))
    check(operation, compared(operation, prepared, prepared.forward()), expected(operation, case), compiled.kind)


def test_what_keeps_logits_in_bfloat16_is_let_in_unless_it_is_ours():
    one, operation = implementations()["eager"], operations()["token_logprobs"]
    case = operation.case("700x16x37", "full", torch.bfloat16, CPU, seed=3)
    prepared = Prepared(case, one.benchmark.prepare("token_logprobs", case))
    found, oracle = compared(operation, prepared, prepared.forward()), expected(operation, case)
    assert 1e-4 < check(operation, found, oracle, "baseline") < 0.05
    with pytest.raises(Unequal, match="out is off by"):
        check(operation, found, oracle, "ours")
    with pytest.raises(Unequal, match="out is off by"):
        check(operation, found | {"out": found["out"] * 1.1}, oracle, "baseline")


def test_a_device_that_is_not_there_is_a_reason():
    for name in ("triton", "cuda"):
        assert implementations()[name].why_not("ppo_loss", CPU, torch.float32)
    assert implementations()["flash_attn"].why_not("attention", CPU, torch.float32)


def test_list_shows_who_is_here_and_why_others_are_not(bench):
    done = bench("list", "device=cpu")
    assert done.code == 0
    for word in (*operations(), "eager", "vectorised", "preset", "64x512"):
        assert word in done.out
    lines = [line.split() for line in done.out.splitlines()]
    assert ["triton"] in [line[:1] for line in lines if len(line) > 1]  # absent: a line of its own, with the reason
    assert ["flash_attn", "not"] in [line[:2] for line in lines]
    assert '"reason"' in bench("list", "--json").out
