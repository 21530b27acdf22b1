"""The least work of the matrix ops, counted again by loops over tokens; and inputs that keep off a decision's edge."""

from itertools import pairwise

import pytest
import torch

from rlhf_core.bench.ops import operations
from rlhf_core.kernels import ppo_loss, token_logprobs

CPU = torch.device("cpu")


def case_of(name: str, shape: str, lengths: str = "full", dtype: torch.dtype = torch.float32):
    return operations()[name], operations()[name].case(shape, lengths, dtype, CPU, seed=2)


def flops_of_pairs(pairs: int, heads: int, size: int) -> dict[str, float]:
    """q·k and p·v forward; the scores again, p·dO, dO·v, and the gradients of q and k backward."""
    product = 2 * pairs * heads * size
    return {"fwd": 2 * product, "bwd": 5 * product, "full": 7 * product}


@pytest.mark.parametrize("lengths", ["full", "ragged"])
def test_attention_counts_each_pair_that_is_seen(lengths):
    operation, case = case_of("attention", "3x41x4x2x8", lengths)
    spans = list(pairwise(case.packed["cu_seqlens"].tolist()))
    pairs = sum(1 for begin, end in spans for t in range(begin, end) for s in range(begin, end) if s <= t)
    for mode, flops in flops_of_pairs(pairs, heads=4, size=8).items():
        assert operation.work(case, mode).flops == flops
    tokens = spans[-1][1]
    assert operation.work(case, "fwd").bytes == 4 * 8 * tokens * (4 + 2 + 2 + 4)
    assert operation.work(case, "full").bytes == 4 * 8 * tokens * (4 + 2 + 2 + 4 + 4 + 4 + 2 + 2)


def test_a_ragged_batch_has_short_sequences_and_a_full_one():
    _, case = case_of("attention", "200x64x1x1x4", "ragged")
    lengths = case.packed["cu_seqlens"].diff()
    assert lengths.max() == 64 and 16 <= lengths.min() < 20
    assert 36 < lengths.double().mean() < 44


def test_a_shared_prompt_counts_once_and_copies_count_themselves():
    prompts, prompt, responses, response = 2, 11, 3, 5
    operation, case = case_of("attention_shared", f"{prompts}x{prompt}x{responses}x{response}x4x2x8")
    pairs = copies = 0
    for t in range(prompt):
        pairs += prompts * (t + 1)
    for t in range(response):
        pairs += prompts * responses * (prompt + t + 1)
    for t in range(prompt + response):
        copies += prompts * responses * (t + 1)
    for mode, flops in flops_of_pairs(pairs, heads=4, size=8).items():
        assert operation.work(case, mode).flops == flops
    assert operation.copied(case, "full") == pytest.approx(copies / pairs)
    assert len(case.packed["q"]) == prompts * (prompt + responses * response)


def test_copies_lie_in_front_of_each_response():
    _, case = case_of("attention_shared", "2x3x2x2x1x1x4")
    packed, padded = case.packed["q"], case.padded["q"]  # 2 prompts: 3 tokens, then 2 and 2
    rows = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6], [7, 8, 9, 10, 11], [7, 8, 9, 12, 13]]
    assert torch.equal(padded, packed[torch.tensor(rows)])
    assert torch.equal(case.to_packed(padded), packed)
    summed = case.gradient_to_packed(torch.ones_like(padded))[:, 0, 0]
    assert summed.tolist() == [2, 2, 2, 1, 1, 1, 1] * 2
    assert torch.equal(case.gradient_to_packed(case.padded["upstream"]), case.packed["upstream"])
    assert case.leaves()[-1][1] is case.padded["v"] and case.padded["v"].requires_grad


def test_decoding_reads_filled_slots_and_each_prompt_once():
    operation, case = case_of("decode_attention", "5x37x6x2x8", "ragged")
    filled = sum(1 for length in case.packed["lengths"].tolist() for _ in range(length))
    assert filled < 5 * 37
    work = operation.work(case, "fwd")
    assert work.bytes == 4 * 8 * (5 * 6 * 2 + filled * 2 * 2)
    assert work.flops == 4 * 8 * 6 * filled
    operation, case = case_of("decode_attention_shared", "2x19x3x7x6x2x8")
    shared, copies = 2 * 19 + 6 * 7, 6 * (19 + 7)
    of_queries = 4 * 8 * 6 * 6 * 2
    assert operation.work(case, "fwd").bytes == of_queries + 4 * 8 * shared * 2 * 2
    assert operation.work(case, "fwd").flops == 4 * 8 * 6 * copies
    expected = (of_queries + 4 * 8 * copies * 2 * 2) / (of_queries + 4 * 8 * shared * 2 * 2)
    assert operation.copied(case, "fwd") == pytest.approx(expected)
    assert case.padded["k_cache"].shape == (6, 19 + 7, 2, 8)
    assert torch.equal(case.padded["k_cache"][4, :19], case.packed["prefix_k"][1])


@pytest.mark.parametrize("name", ["token_logprobs", "token_logprobs_entropy"])
def test_log_probs_count_one_product_forward_and_two_backward(name):
    operation, case = case_of(name, "10x6x7")
    product = sum(2 for _ in range(10) for _ in range(7) for _ in range(6))
    assert [operation.work(case, mode).flops for mode in ("fwd", "bwd", "full")] == [product, 2 * product, 3 * product]
    assert operation.work(case, "fwd").bytes >= 4 * (10 * 6 + 7 * 6)


def test_from_logits_is_three_passes():
    operation, case = case_of("logprobs_from_logits", "10x7", dtype=torch.bfloat16)
    assert [operation.work(case, mode).bytes for mode in ("fwd", "full")] == [140, 420]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_policy_loss_counts_products_of_tokens_that_have_a_gradient(dtype):
    operation, case = case_of("linear_policy_loss", "400x16x37x40", dtype=dtype)
    x = case.packed
    assert int(x["mask"].sum()) == 160
    with torch.no_grad():
        logprobs = token_logprobs(x["hidden"], x["weight"], x["targets"], backend="eager")
    leaf = logprobs.clone().requires_grad_()
    loss, metrics = ppo_loss(leaf, x["old_logprobs"], x["advantages"], mask=x["mask"], backend="eager")
    (gradient,) = torch.autograd.grad(loss, leaf)
    live = sum(1 for value in gradient.tolist() if value)
    product = 2 * 16 * 37
    assert operation.work(case, "fwd").flops == 160 * product
    assert operation.work(case, "full").flops == (160 + 2 * live) * product
    assert 0 < float(metrics["clip_frac"]) < 0.15 and live < 160
    ratios = (logprobs - x["old_logprobs"]).exp()
    edges = torch.tensor([0.8, 1.2])
    assert float((ratios[:, None] - edges).abs().min()) > 0.05
