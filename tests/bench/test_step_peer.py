"""``rlhf bench step --peer trl``: equal work on both sides, counted; on a world of a few thousand parameters."""

import json
from types import SimpleNamespace

import pytest
import torch

from rlhf_core.bench import step_peer, step_side
from rlhf_core.bench.step_peer import compare, settings, spelled
from rlhf_core.bench.step_side import Job, Setting, Side, serve
from rlhf_core.bench.step_table import equal, ratios, row, table
from rlhf_core.bench.step_world import END, DistinctWords, World
from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError

SMALL = {
    "vocabulary": 64, "hidden": 64, "layers": 1, "heads": 2, "intermediate": 64,
    "prompts": 2, "prompt_tokens": 6, "responses": 4, "new_tokens": 5,
}  # fmt: skip
WORLD, CPU = World(**SMALL), torch.device("cpu")


def test_our_side_takes_steps_and_counts_tokens():
    found = compare([Setting("ours", "float32")], WORLD, CPU, 1, steps=2, warmup=1)
    (side,) = found["sides"]
    assert len(side["step_ms"]) == 2 and side["best_ms"] == min(side["step_ms"]) > 0
    assert side["responses"] == 2 * WORLD.batch and found["equal_work"]  # the warm-up's are not among them
    assert 1 <= side["mean_length"] <= WORLD.new_tokens and side["tokens"] == side["mean_length"] * side["responses"]
    assert side["computes in"] == "torch.float32" and "2 prompts × 4 responses" in side["arithmetic"]
    assert "grpo_loss" in side["kernels"] and found["machine"]["threads"] == 1
    assert found["ratios"] == [] and "tokens a response" in "\n".join(table(found))


@pytest.mark.slow  # six processes import torch, four of them TRL
def test_with_trl_both_sides_do_the_same(bench, tmp_path):
    pytest.importorskip("trl")
    sizes = [f"{key}={value}" for key, value in SMALL.items()]
    done = bench("step", "--peer", "trl", "steps=1", "warmup=1", "device=cpu", f"out={tmp_path / 'o.json'}", *sizes)
    assert done.code == 0, done.out + done.err
    found = json.loads((tmp_path / "o.json").read_text())
    assert [(side["side"], side["precision"], side["accumulate"]) for side in found["sides"]] == [
        ("ours", "auto", 1), ("ours", "float32", 1),
        ("trl", "bf16", 1), ("trl", "bf16", 4), ("trl", "float32", 1), ("trl", "float32", 4),
    ]  # fmt: skip
    assert {side["responses"] for side in found["sides"]} == {WORLD.batch}
    assert [ratio["ours"] for ratio in found["ratios"]] == ["auto", "float32"]
    assert found["machine"]["versions"]["trl"] and "by medians" in done.out and not done.err


def test_without_trl_one_line_says_so(bench, monkeypatch):
    monkeypatch.setattr(step_peer, "find_spec", lambda name: None)
    done = bench("step", "--peer", "trl")
    assert done.code == 1 and done.err == "error: peer=trl: the package trl is not installed here; pip install trl\n"


@pytest.mark.parametrize("words", [["--peer", "trl"], ["--peer=trl"], ["peer=trl"]])
def test_the_peer_is_written_as_a_flag_or_as_a_key(words):
    assert spelled(["steps=2", *words, "out=a b.json"]) == ["steps=2", "peer=trl", "out=a b.json"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--peer",), "peer takes a value"),
        (("--peer", "verl"), "there are: trl"),
        (("peer=trl", "step=3"), "Did you mean steps?"),
        (("peer=trl", "policy=tiny"), "no such key"),
        (("peer=trl", "heads=3"), "heads=3"),
        (("peer=trl", "responses=1"), "responses=1"),
    ],
)
def test_what_is_asked_wrong_is_told_in_one_line(bench, monkeypatch, words, named):
    monkeypatch.setattr(step_peer, "find_spec", lambda name: True)
    done = bench("step", *words)
    assert done.code == 1 and named in done.err and done.err.count("\n") == 1


def test_a_batch_is_cut_in_four_where_it_can_be():
    assert [setting.accumulate for setting in settings(WORLD, "trl")] == [1, 1, 1, 4, 1, 4]
    assert [setting.accumulate for setting in settings(World(prompts=3, responses=3), "trl")] == [1, 1, 1, 1]


def test_the_world_is_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        WORLD.write(tmp_path / name)
    assert (tmp_path / "a/prompts.jsonl").read_text() == (tmp_path / "b/prompts.jsonl").read_text()
    pairs = zip(WORLD.model().parameters(), WORLD.model().parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    tokenizer = WORLD.tokenizer()
    assert {len(tokenizer.encode(text)) for text in WORLD.texts()} == {WORLD.prompt_tokens}
    assert tokenizer.eos_token_id == WORLD.model().config.eos_token_id == tokenizer.encode(END)[0]


def test_the_full_world_is_what_the_page_says():
    assert sum(parameter.numel() for parameter in World().model().parameters()) == 5_261_568


def test_the_reward_counts_different_words_for_both_sides():
    work, texts, ids = DistinctWords(), ["w1 w2 w1", ""], [[3, 4, 3], [0]]
    assert work(texts, ids, prompts=["x", "y"]) == [2.0, 0.0]
    scores = work.score(Samples([Prompt(text="x")] * 2, texts, response_ids=ids))
    assert scores.tolist() == [2.0, 0.0] and scores.dtype == torch.float32
    assert work.lengths == [3, 1, 3, 1]


OURS, THEIRS, OTHER = Setting("ours", "auto"), Setting("trl", "bf16"), Setting("trl", "bf16", 4)


def test_ratios_are_of_the_least_of_the_peers():
    rows = [row(OURS, [2.0, 4.0, 9.0], [5], {}), row(THEIRS, [7.0, 20.0, 30.0], [5], {}), row(OTHER, [8.0], [5], {})]
    assert ratios(rows) == [
        {"ours": "auto", "median": 2.0, "best": 3.5, "median_of": "bf16, 4 parts", "best_of": "bf16"}
    ]


@pytest.mark.parametrize(
    ("lengths", "same"),
    [
        ([64] * 16, True),
        ([64] * 15 + [10], True),  # one has ended: chance
        ([63] * 16, True),
        ([60] * 16, False),
        ([32] * 16, False),
        ([64] * 8, False),  # half of the responses
    ],
)
def test_unequal_work_is_found(lengths, same):
    rows = [row(OURS, [1.0], [64] * 16, {}), row(THEIRS, [1.0], lengths, {})]
    assert equal(rows, 16) == same


@pytest.mark.parametrize(("step_ms", "noisy"), [([2.0, 2.1, 9.0], False), ([2.0, 4.0, 9.0], True)])
def test_noise_and_unequal_work_are_told(step_ms, noisy):
    rows = [row(OURS, [1.0], [3], {}), row(THEIRS, step_ms, [3], {})]
    machine = {"device": "a", "threads": 1, "versions": dict.fromkeys(("torch", "transformers", "trl"), "1")}
    found = {"machine": machine, "world": vars(WORLD), "parameters": 1, "sides": rows, "ratios": ratios(rows)}
    text = "\n".join(table(found | {"equal_work": False}))
    assert ("NOISY" in text) == noisy and "NOT EQUAL WORK" in text
    assert "NOT EQUAL WORK" not in "\n".join(table(found | {"equal_work": True}))


def test_what_a_side_stumbles_over_is_told_in_one_line(tmp_path, monkeypatch):
    sent: list[dict] = []

    def run(*_):
        raise ValueError("no\nway")

    monkeypatch.setattr(step_side, "import_module", lambda name: SimpleNamespace(run=run))
    threads = torch.get_num_threads()
    serve(SimpleNamespace(send=sent.append), THEIRS, Job(WORLD, tmp_path, CPU, threads, 1))
    assert sent == [{"error": "ValueError: no way"}]


def test_a_side_that_fails_to_start_is_named(tmp_path):
    with pytest.raises(UserError, match=r"ours \(float64\): precision: got 'float64'"):  # one that there is not
        WORLD.write(tmp_path)
        Side(Setting("ours", "float64"), Job(WORLD, tmp_path, CPU, 1, 1))
