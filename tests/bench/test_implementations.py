"""Everything that comes with the package computes what the ops' definitions say, and says why it cannot."""

import pytest
import torch

from rlhf_core.bench.gate import check, compared, expected
from rlhf_core.bench.implementations import implementations
from rlhf_core.bench.ops import operations
from rlhf_core.bench.prepared import Prepared

CPU = torch.device("cpu")
SHAPES = {"shaped_gae": "5x37", "ppo_loss": "5x37", "grpo_loss": "5x37", "ranking_loss": "6x5", "preference_loss": "11"}
PAIRS = [(name, op) for name, one in implementations().items() for op in one.ops if op in SHAPES and name != "compile"]


def test_those_of_this_package_are_registered():
    ours = {
        "eager",
        "vectorised",
        "compile",
        "definition",
        "cpu",
        "triton",
        "cuda",
        "torchrl",
        "trl",
        "liger",
        "flash_attn",
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
    check(operation, compared(operation, prepared, prepared.forward()), expected(operation, case))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
def test_compile_computes_an_op():
    compiled, operation = implementations()["compile"], operations()["preference_loss"]
    if compiled.why_not("preference_loss", CPU, torch.float32):
        return
    case = operation.case("11", "full", torch.float32, CPU, seed=0)
    prepared = Prepared(case, compiled.benchmark.prepare("preference_loss", case))
    check(operation, compared(operation, prepared, prepared.forward()), expected(operation, case))


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
    assert next(line for line in lines if line[:1] == ["flash_attn"])[-2:] == ["covers", "attention"]
    assert '"reason"' in bench("list", "--json").out
