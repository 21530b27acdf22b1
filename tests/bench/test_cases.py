"""Cases: two layouts of the same numbers, the same for the same seed."""

from itertools import pairwise

import pytest
import torch

from rlhf_core.bench.footprint import footprint
from rlhf_core.bench.ops import operations
from rlhf_core.bench.prepared import Prepared
from rlhf_core.bench.timing import Budget, Clock, interleaved

CPU = torch.device("cpu")


LAYOUTS = [name for name in operations() if not name.endswith("_shared")]  # those hold a prompt several times


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_hold_the_same_numbers(name):
    operation = operations()[name]
    case = operation.case("x".join(["7"] * len(operation.dims)), "ragged", torch.float32, CPU, seed=1)
    for key in operation.per_token:
        padded = case.padded[key]
        assert padded.shape == (7, 7, *case.packed[key].shape[1:])
        assert torch.equal(case.to_packed(padded), case.packed[key])
        assert int((padded != 0).sum()) == int((case.packed[key] != 0).sum())  # zeros behind the ends
    assert {name for name, _ in case.leaves()} == set(operation.learnt)
    assert all(leaf.requires_grad and leaf.is_leaf for _, leaf in case.leaves())


@pytest.mark.parametrize("name", operations())
def test_a_seed_gives_the_same_numbers_and_another_others_of_the_same_lengths(name):
    operation = operations()[name]
    shape = operation.presets["ci"][0]
    one, same, other = (operation.case(shape, "ragged", torch.float32, CPU, seed) for seed in (4, 4, 5))
    assert all(torch.equal(one.packed[key], same.packed[key]) for key in one.packed)
    assert any(not torch.equal(one.packed[key], other.packed[key]) for key in one.packed)
    if "cu_seqlens" in one.packed:
        assert torch.equal(one.packed["cu_seqlens"], other.packed["cu_seqlens"])


@pytest.mark.parametrize("name", operations())
def test_the_least_work_grows_with_the_mode(name):
    operation = operations()[name]
    case = operation.case(operation.presets["ci"][0], "full", torch.float32, CPU, seed=0)
    forward, full = operation.work(case, "fwd").bytes, operation.work(case, "full").bytes
    assert 0 < forward <= full
    assert (full > forward) == bool(operation.learnt)


def prepared_exp(size: int) -> Prepared:
    """A case whose forward makes one tensor beside its inputs, and whose backward another."""
    operation = operations()["preference_loss"]
    case = operation.case(str(size), "full", torch.float32, CPU, seed=0)
    prepared = Prepared(case, lambda: {"loss": case.packed["chosen"].exp().sum()})
    prepared.gradients(prepared.forward())
    return prepared


def test_the_footprint_is_what_was_allocated_and_launched():
    prepared = prepared_exp(100_000)
    forward, full = footprint(prepared, "fwd", CPU), footprint(prepared, "full", CPU)
    assert 400_000 <= forward.peak < 410_000
    assert 800_000 <= full.peak < 1_210_000
    assert forward.launches == 2  # exp, sum
    assert full.launches > forward.launches
    assert footprint(prepared, "bwd", CPU).launches == full.launches - forward.launches


class Slow:
    """Takes part in a timing, and notes when."""

    def __init__(self, name: str, ms: float, order: list[str]) -> None:
        self.name, self.ms, self.order = name, ms, order

    def repetition(self, mode: str, clock: Clock) -> float:
        self.order.append(self.name)
        return self.ms


def test_repetitions_are_interleaved_and_stop_at_the_budget():
    order: list[str] = []
    costs = {"a": 400.0, "b": 1.0, "c": 2.0}
    pools = {name: [Slow(f"{name}{item}", ms, order) for item in range(4)] for name, ms in costs.items()}
    times = interleaved(pools, "fwd", Clock(), Budget(repetitions=40, seconds=1.0))
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 40, "c": 40}
    assert order[:3] == ["a3", "b3", "c3"]  # once more before timing
    rounds = [order[3 + 3 * turn : 6 + 3 * turn] for turn in range(3)]
    assert all({call[0] for call in calls} == {"a", "b", "c"} for calls in rounds)
    assert all(one[1] != following[1] for one, following in pairwise(order[3:]))  # no case twice in a row
    assert len({pair for pair in pairwise(call[0] for call in order[12:])}) == 4  # each follows each
    assert {call for call in order[12:] if call[0] == "b"} == {"b0", "b1", "b2", "b3"}
