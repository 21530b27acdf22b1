"""The same held-out prompts before and after: what is measured of the answers, and what is shown."""

import json

import pytest
import torch


def rows(started):
    return [json.loads(line) for line in (started.run.folder / "samples.jsonl").read_text().splitlines()]


def change(started):
    with torch.no_grad():
        for parameter in started.algorithm.policy.model.parameters():
            parameter.mul_(0.8)


@pytest.fixture
def evaluated(start, ppo):
    started = start(*ppo("llama", "algorithm.eval_prompts=6", "evaluator=[win_rate]", "algorithm.kl_coef=0.1"))
    before = started.algorithm.evaluate(0)
    change(started)
    return started, before, started.algorithm.evaluate(5)


def test_at_the_start_nothing_has_changed(evaluated):
    _, before, _ = evaluated
    assert before["reward_gain_sd"] == 0 and before["length_ratio"] == 1 and before["win_rate"] == 0.5
    assert before["kl"] == pytest.approx(0, abs=1e-4)
    assert before["reward"] == before["reward_start"]


def test_numbers_are_those_of_the_samples(evaluated):
    started, before, after = evaluated
    shown = [row for row in rows(started) if row["step"] == 5]
    assert len(shown) == 6  # as many prompts are measured as are shown here
    scores = torch.tensor([row["scores"]["reward"] for row in shown])
    start = torch.tensor([row["baseline_scores"]["reward"] for row in shown])
    assert after["reward"] == pytest.approx(float(scores.mean()))
    assert after["reward_start"] == pytest.approx(float(start.mean())) == pytest.approx(before["reward"])
    assert float(start.std()) > 0.1
    gain = (scores.mean() - start.mean()) / start.std(correction=0)
    assert after["reward_gain_sd"] == pytest.approx(float(gain), rel=1e-4)
    assert after["length"] == pytest.approx(sum(len(row["tokens"]) for row in shown) / 6)
    assert after["length_ratio"] == pytest.approx(after["length"] / before["length"])
    assert after["kl"] == pytest.approx(sum(sum(row["kl"]) for row in shown) / 6, abs=1e-3)
    assert abs(after["kl"]) > 0.1
    assert after["eos_frac"] == pytest.approx(sum(row["stop"] == "eos" for row in shown) / 6)
    wins = [(row["scores"]["sentiment"] > row["baseline_scores"]["sentiment"])
            + 0.5 * (row["scores"]["sentiment"] == row["baseline_scores"]["sentiment"]) for row in shown]  # fmt: skip
    assert after["win_rate"] == pytest.approx(sum(wins) / 6)


def test_samples_show_the_same_prompts_with_the_first_answers_beside(evaluated):
    started, _, _ = evaluated
    first, last = ([row for row in rows(started) if row["step"] == step] for step in (0, 5))
    assert [row["prompt"] for row in first] == [row["prompt"] for row in last]
    assert [row["baseline"] for row in first] == [None] * 6
    assert [row["baseline"] for row in last] == [row["response"] for row in first]
    assert [row["response"] for row in last] != [row["response"] for row in first]
    for row in first + last:
        assert len(row["tokens"]) == len(row["kl"]) == len(row["advantages"]) <= 8
        assert (row["tokens"][-1] == "<|end|>") == (row["stop"] == "eos")


def test_prompts_are_held_out_and_spread_over_their_split(evaluated):
    started, _, _ = evaluated
    everything = [prompt.shown for prompt in started.run.data.prompts("test")]
    places = [everything.index(row["prompt"]) for row in rows(started) if row["step"] == 0]
    assert places == sorted(places) and places[-1] > len(everything) // 2
    assert not {prompt.shown for prompt in started.run.data.prompts("train")} & set(everything)


def test_evaluation_leaves_no_trace_in_training(start, ppo):
    """Random numbers, weights and state after an evaluation are what they were."""
    started = start(*ppo("llama"))
    state = torch.get_rng_state(), started.algorithm.state_dict()
    weights = {name: tensor.clone() for name, tensor in started.module.state_dict().items()}
    started.algorithm.evaluate(3)
    assert torch.equal(torch.get_rng_state(), state[0]) and started.algorithm.state_dict() == state[1]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in started.module.state_dict().items())


def test_the_headline_says_what_changed(evaluated):
    started, _, after = evaluated
    text = started.algorithm.headline(after)
    for part in (f"{after['reward_gain_sd']:+.1f} SD", f"KL {after['kl']:.1f} nats", f"wins {after['win_rate']:.0%}"):
        assert part in text
    assert "\n" not in text
