"""The CUDA sources, run on the host thread by thread (cuda_on_host/), against the definitions in float64.

This says that they compute what they should whatever the order of blocks and threads, and touch only their own memory;
not that a GPU runs them, nor how fast.
"""

from functools import partial
from importlib import import_module

import pytest
import torch

from rlhf_core import kernels
from rlhf_core.batch import offsets
from rlhf_core.kernels import dispatch

from .cases import OPTIONS, Case, Choice, build, compare, covering
from .cuda_on_host import host as emulated
from .cuda_on_host import ops

RUN = {
    "shaped_gae": ops.run_shaped_gae,
    "ppo_loss": ops.run_policy_loss,
    "grpo_loss": ops.run_policy_loss,
    "ranking_loss": ops.run_ranking_loss,
    "preference_loss": ops.run_preference_loss,
    "decode_attention": ops.run_decode_attention,
}
RAGGED = [5, 0, 33, 1, 140]  # a warp a sequence
LONG = [700, 0, 900]  # a block a sequence
EDGES = [0, 1, 31, 32, 33, 127, 128, 129, 1023]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> emulated.Host:
    if reason := emulated.why_not():
        pytest.skip(reason)
    return emulated.Host(tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def host(compiled: emulated.Host, monkeypatch: pytest.MonkeyPatch) -> emulated.Host:
    """With the CUDA backend of every op computed by it."""
    for op, run in RUN.items():
        implementation = dispatch.Implementation(partial(run, compiled))
        monkeypatch.setitem(dispatch._ops[op].implementations, "cuda", implementation)
    compiled.order = compiled.shift = 0
    return compiled


def check(host: emulated.Host, case: Case) -> None:
    """Right; and the same bits whatever the order of blocks and threads and the alignment of tensors."""
    exact, single = case.to(torch.float64).run("eager"), case.run("eager")
    host.order, host.shift = 0, 0
    found = case.run("cuda")
    compare(found, single, exact)
    mask = case.arguments.get("mask")
    if mask is not None:
        assert all((x[~mask] == 0).all() for x in found.values() if x.shape == mask.shape)
    for host.order, host.shift in ((1, 1), (2, 3)):
        again = case.run("cuda")
        assert all(torch.equal(found[name], again[name]) for name in found), (host.order, host.shift)


def every_choice() -> list[object]:
    return [pytest.param(op, choice, id=f"{op}-{n}") for op in OPTIONS for n, choice in enumerate(covering(op))]


@pytest.mark.parametrize(("op", "choice"), every_choice())
def test_every_option(op: str, choice: Choice, host: emulated.Host) -> None:
    check(host, build(op, choice, RAGGED, seed=1))


@pytest.mark.parametrize("op", OPTIONS)
@pytest.mark.parametrize("lengths", [LONG, EDGES, [4096 + 513, 700]], ids=str)
def test_long_and_ragged(op: str, lengths: list[int], host: emulated.Host) -> None:
    if op == "ranking_loss":
        lengths = [length // 9 for length in lengths]  # its work is the square of them
    for choice in covering(op)[:4]:
        check(host, build(op, choice, lengths, seed=2))


@pytest.mark.parametrize("op", OPTIONS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [1, 0, 2]], ids=str)
def test_next_to_nothing(op: str, lengths: list[int], host: emulated.Host) -> None:
    for choice in covering(op)[:16]:
        check(host, build(op, choice, lengths, seed=3))


@pytest.mark.parametrize("op", OPTIONS)
def test_more_sequences_than_blocks(op: str, host: emulated.Host) -> None:
    """So that a block takes several: 2048 blocks of up to four. And as many counts as blocks leave at most."""
    counted = {"aggregate": "sequence", "denominator": None, "kind": "grpo"}
    choice = covering(op)[0]
    choice = choice | {name: value for name, value in counted.items() if value in OPTIONS[op].get(name, ())}
    check(host, build(op, choice, [1, 2, 0] * 2750, seed=4))


BAD_OFFSETS = [[0, 9, 4, 20], [-5, 3, 99, 20], [2**31 - 1, -(2**31), 7, 7], [20, 20, 20, 20]]


@pytest.mark.parametrize("op", ["shaped_gae", "ppo_loss", "grpo_loss", "ranking_loss"])
@pytest.mark.parametrize("bad", BAD_OFFSETS, ids=str)
def test_bad_offsets_reach_nothing_outside(
    op: str, bad: list[int], host: emulated.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot be checked on a GPU; what comes out is of no use, but nothing is written out of bounds."""
    monkeypatch.setattr("rlhf_core.kernels.checks.host_offsets", lambda *_, **__: [])
    for choice in covering(op)[:8]:
        case = build(op, choice, [7, 6, 7], seed=5)
        case.arguments["cu_seqlens"] = torch.tensor(bad, dtype=torch.int32)
        case.run("cuda")


@pytest.mark.parametrize("company", [0, 30])
@pytest.mark.parametrize("row", range(6))
def test_a_sequence_does_not_depend_on_the_batch(row: int, company: int, host: emulated.Host) -> None:
    """Its advantages have the same bits alone, where a block takes it, and among others, where a warp does."""
    lengths, choice = [1500, 100, 1, 77, 0, 300], covering("shaped_gae")[0]
    batch = build("shaped_gae", choice | {"mask": "some", "lam": 0.95, "gamma": 0.9}, lengths, seed=6)
    begin, end = batch.arguments["cu_seqlens"][row : row + 2].tolist()

    def alone(x: object) -> object:
        if not torch.is_tensor(x):
            return x
        return x[begin:end] if len(x) == sum(lengths) else torch.cat([x[row : row + 1], torch.ones(company)])

    arguments = {name: alone(x) for name, x in batch.arguments.items() if name != "cu_seqlens"}
    found = kernels.shaped_gae(**arguments, cu_seqlens=offsets([lengths[row]] + [0] * company), backend="cuda")
    whole = kernels.shaped_gae(**batch.arguments, backend="cuda")
    for name in ("advantages", "returns", "kl"):
        assert torch.equal(getattr(found, name), getattr(whole, name)[begin:end])


DECODING = [
    # lengths, query heads, key heads, D; prompts' lengths, prompt of each sequence
    ([5, 0, 256, 257, 600], 4, 4, 32, [], []),
    ([3, 300, 0], 6, 2, 64, [257, 0, 40], [2, 0, -1]),
    ([0, 511, 7], 8, 1, 96, [512], [0, 0, 0]),
    ([31, 0, 129, 1], 14, 2, 128, [70, 256], [1, 0, 1, -1]),
    ([260], 9, 1, 64, [], []),
    ([0, 0], 2, 2, 32, [], []),
    ([0, 0], 2, 1, 32, [3], [-1, 0]),
    ([], 2, 1, 32, [3], []),
]


def decoding(number: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What is in no filled slot is NaN."""
    lengths, heads, key_heads, size, prompts, prompt_of = DECODING[number]
    random = torch.Generator().manual_seed(number)

    def rows(counts: list[int]) -> torch.Tensor:
        some = torch.randn(len(counts), max(counts, default=0) + 2, key_heads, size, generator=random)
        for row, count in zip(some, counts, strict=True):
            row[count:] = torch.nan
        return some.to(dtype)

    case = {"q": torch.randn(len(lengths), heads, size, generator=random).to(dtype)}
    case |= {"k_cache": rows(lengths), "v_cache": rows(lengths), "lengths": torch.tensor(lengths, dtype=torch.int32)}
    if prompts:
        case |= {"prefix_k": rows(prompts), "prefix_v": rows(prompts)}
        case |= {"prefix_of": torch.tensor(prompt_of, dtype=torch.int32)}
        case |= {"prefix_lengths": torch.tensor(prompts, dtype=torch.int32)}
    return case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("number", range(len(DECODING)))
def test_decode_attention(number: int, dtype: torch.dtype, host: emulated.Host) -> None:
    """Right; the same bits in any order of blocks and threads, and for rows read at once or a number at a time."""
    case = decoding(number, dtype)
    wide = {name: x.double() if x.is_floating_point() else x for name, x in case.items()}
    exact, single = (kernels.decode_attention(**x, scale=0.3, backend="eager") for x in (wide, case))
    found = kernels.decode_attention(**case, scale=0.3, backend="cuda")
    compare({"out": found}, {"out": single}, {"out": exact}, small=2e-7)
    for host.order, host.shift in ((1, 1), (2, 8)):
        assert torch.equal(kernels.decode_attention(**case, scale=0.3, backend="cuda"), found)


def test_decode_attention_of_a_whole_prompt(host: emulated.Host) -> None:
    """Without lengths of prompts, all of them is theirs."""
    case = decoding(1, torch.float32)
    case |= {name: case[name].nan_to_num() for name in ("prefix_k", "prefix_v")}
    del case["prefix_lengths"]
    found, wanted = (kernels.decode_attention(**case, backend=backend) for backend in ("cuda", "eager"))
    torch.testing.assert_close(found, wanted)


def test_a_sequence_decodes_the_same_in_any_batch(host: emulated.Host) -> None:
    case = decoding(3, torch.bfloat16)
    whole = kernels.decode_attention(**case, backend="cuda")
    of_sequences = ("q", "k_cache", "v_cache", "lengths", "prefix_of")
    for row in range(len(whole)):
        alone = {name: x[row : row + 1] if name in of_sequences else x for name, x in case.items()}
        slots = int(alone["lengths"])
        alone |= {name: alone[name][:, :slots] for name in ("k_cache", "v_cache")}
        assert torch.equal(kernels.decode_attention(**alone, backend="cuda")[0], whole[row])


@pytest.mark.parametrize("bad", [-5, 2**31 - 1])
def test_bad_lengths_and_prompts_reach_nothing_outside(
    bad: int, host: emulated.Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot be checked on a GPU without waiting for it."""
    monkeypatch.setattr(import_module("rlhf_core.kernels.decode_attention"), "_check_range", lambda *_: None)
    case = decoding(1, torch.float32)
    for name in ("lengths", "prefix_of", "prefix_lengths"):
        kernels.decode_attention(**case | {name: torch.full_like(case[name], bad)}, backend="cuda")


def test_a_barrier_that_not_all_threads_reach_is_an_error(compiled: emulated.Host) -> None:
    assert compiled.library.emulator_checks_itself()
