"""Each algorithm gets the panels that it has something to draw in."""

import json
import math

import pytest

from rlhf_core.plugins import available
from rlhf_core.report.kinds import (
    BY_ALGORITHM,
    IMITATION,
    LANGUAGE_MODEL,
    POLICY_GRADIENT,
    PREFERENCE,
    RANKING,
    kind_of,
    main_panels,
    other_panels,
)
from rlhf_core.report.read import read_run

ROLLOUT = {"reward": [0.1, 0.4], "kl": [0.0, 2.0], "length": [20.0, 21.0], "kl_coef": [0.05, 0.05]}
UPDATE = {"entropy": [3.0, 2.9], "approx_kl": [0.01, 0.02], "clip_frac": [0.1, 0.2], "policy_loss": [0.0, 0.0]}
ANSWERS = {"reward": [0.0, 0.3, 0.6], "kl": [0.0, 1.0, 3.0], "length": [20.0, 22.0, 24.0], "eos_frac": [1.0] * 3}
JUDGED = {"win_rate": [0.5, 0.6, 0.7], "judge/sentiment": [0.1, 0.2, 0.15], "judge_start/sentiment": [0.1] * 3}
PAIRS = {
    **{"loss": [0.69, 0.6], "accuracy": [0.5, 0.7], "reward_margin": [0.0, 0.4], "chosen_reward": [0.0, 0.1]},
    **{"rejected_reward": [0.0, -0.3], "chosen_logprob": [-30.0, -29.0], "rejected_logprob": [-31.0, -34.0]},
}


def titles(folder):
    run = read_run(folder)
    panels = main_panels(run)
    assert all(panel.figure for panel in panels), "an empty shell"
    return [panel.title for panel in panels]


def rows_of(folder, title):
    """What the rows of a panel are called."""
    panel = next(panel for panel in main_panels(read_run(folder)) if panel.title == title)
    return [note["text"] for note in json.loads(panel.figure)["layout"]["annotations"]]


def test_each_algorithm_here_has_a_kind():
    ours = [name for name, info in available("algorithm").items() if info.distribution == "rlhf-core"]
    assert set(ours) <= BY_ALGORITHM.keys(), "say in kinds.py what its section shows"


@pytest.mark.parametrize("algorithm", [name for name, kind in BY_ALGORITHM.items() if kind is POLICY_GRADIENT])
def test_a_policy_gradient_shows_what_it_has_and_no_more(make_stage, algorithm):
    shown = titles(make_stage("run", algorithm, ROLLOUT, ANSWERS | JUDGED))
    assert shown == ["Reward against KL", "Reward and judges", "KL and its coefficient", "Length drift"]


def test_critic_and_clip_are_shown_where_they_do_something(make_stage):
    critic = {"value_loss": [0.5, 0.3], "explained_variance": [0.0, 0.4]}
    assert titles(make_stage("ppo", "ppo", ROLLOUT | UPDATE | critic, ANSWERS))[-3:] == [
        "Entropy",
        "Size of the updates",
        "Critic",
    ]
    none = {"value_loss": [0.0, 0.0], "value_clip_frac": [0.0, 0.0]}
    assert titles(make_stage("without", "reinforce_pp", ROLLOUT | UPDATE | none, ANSWERS))[-1] == "Size of the updates"
    still = {"approx_kl": [0.0, 1e-9], "clip_frac": [0.0, 0.0]}
    assert titles(make_stage("one_update", "rloo", ROLLOUT | UPDATE | still, ANSWERS))[-1] == "Entropy"


def test_an_unclipped_update_has_no_clipped_part(make_stage):
    clipped = make_stage("clipped", "grpo", ROLLOUT | UPDATE, ANSWERS)
    free = make_stage("free", "reinforce", ROLLOUT | UPDATE | {"clip_frac": [0.0, 0.0]}, ANSWERS)
    assert rows_of(clipped, "Size of the updates") == ["<b>part of tokens clipped</b>", "<b>KL of one update, nats</b>"]
    assert rows_of(free, "Size of the updates") == ["<b>KL of one update, nats</b>"]


@pytest.mark.parametrize(("algorithm", "unit"), [("rloo", "Nats a response"), ("grpo", "Nats a token")])
def test_entropy_is_in_the_units_of_the_loss(make_stage, algorithm, unit):
    run = read_run(make_stage("run", algorithm, ROLLOUT | UPDATE, ANSWERS))
    assert next(panel for panel in main_panels(run) if panel.title == "Entropy").caption.startswith(unit)


def test_a_coefficient_of_zero_is_not_drawn(make_stage):
    folder = make_stage("run", "dapo", ROLLOUT | {"kl_coef": [0.0, 0.0], "flat_groups": [0.2, 0.1]}, ANSWERS)
    assert titles(folder)[2:] == ["KL", "Length drift", "Flat groups"]


@pytest.mark.parametrize("algorithm", ["dpo", "ipo", "kto", "orpo", "simpo"])
def test_preference_algorithms(make_stage, show, algorithm):
    learned = ["Pairs in order", "Loss", "Implicit rewards", "Log-probs of ranked responses"]
    held_out = {name: [*values, values[-1]] for name, values in PAIRS.items()}
    assert titles(make_stage("pairs", algorithm, PAIRS, held_out)) == learned
    folder = make_stage("answers", algorithm, PAIRS, held_out | ANSWERS | JUDGED)
    assert titles(folder) == [*learned, "Reward against KL", "Reward and judges", "KL", "Length drift"]
    assert [panel.title for panel in other_panels(read_run(folder))] == ["eos_frac"]
    page = show(folder)
    for words in ("Held-out pairs in order 0.700 from 0.500", "Win rate against start 0.700", "KL 3 nats"):
        assert words in page.text
    drawn = [trace["y"] for trace in page.figure("Pairs in order")["data"] if trace.get("name")]
    assert drawn == [PAIRS["accuracy"], held_out["accuracy"]]


def test_pairs_of_own_samples(make_stage):
    shown = titles(make_stage("run", "online_dpo", ROLLOUT | {k: PAIRS[k] for k in PAIRS if k != "loss"}, ANSWERS))
    assert shown[-2:] == ["Pairs in order", "Implicit rewards"]


def test_imitation_shows_its_answers(make_stage):
    text = {"loss": [3.0, 2.5], "lr": [1e-3, 5e-4]}
    held_out = {"loss": [3.1, 2.8, 2.7], "perplexity": [22.0, 16.0, 15.0]}
    assert titles(make_stage("alone", "feedme", text, held_out)) == ["Loss", "Optimiser"]
    both = titles(make_stage("both", "feedme", text, held_out | ANSWERS))
    assert both == ["Loss", "Optimiser", "Reward against KL", "Reward and judges", "KL", "Length drift"]


def test_what_is_left_of_plain_text(make_stage):
    tax = {"text_loss": [3.0, 3.1, 3.2], "text_perplexity": [20.1, 22.2, 24.5]}
    assert titles(make_stage("run", "rloo", ROLLOUT, ANSWERS | tax))[-1] == "Plain text"


@pytest.mark.parametrize("evaluations", [1, 3])
def test_best_of_n_is_drawn_on_its_kl(make_stage, show, evaluations):
    curves = {}
    for n in (8, 1, 4, 2):
        curves[f"best_of_{n}/kl"] = [math.log(n) - (n - 1) / n] * evaluations
        curves[f"best_of_{n}/reward"] = [0.1 * n + step for step in range(evaluations)]
        curves[f"best_of_{n}/judge/sentiment"] = [0.2 * n + step for step in range(evaluations)]
        curves[f"best_of_{n}/win_rate"] = [0.5 + 0.01 * n] * evaluations
    held_out = {name: values[:evaluations] for name, values in ANSWERS.items()} | curves
    page = show(make_stage("run", "best_of_n", ROLLOUT if evaluations > 1 else {}, held_out))
    drawn = [trace for trace in page.figure("Best of n")["data"] if trace.get("name")]
    assert [trace["name"] for trace in drawn] == ["step 0", "step 2"][: min(evaluations, 2)] * 3
    last = drawn[min(evaluations, 2) - 1]
    assert last["x"] == pytest.approx([math.log(n) - (n - 1) / n for n in (1, 2, 4, 8)])
    assert last["y"] == pytest.approx([0.1 * n + evaluations - 1 for n in (1, 2, 4, 8)])
    assert last["text"] == ["n = 1", "n = 2", "n = 4", "n = 8"]
    assert "best_of_8/kl" not in page.text  # nor a panel of its own


def test_an_evaluation_is_a_row_of_numbers(make_stage, show):
    measured = {"reward": [0.5], "reward_start": [0.5], "reward_gain_sd": [0.0], "reward/quality": [0.7]}
    measured |= {
        "judge/sentiment": [0.4],
        "judge_start/sentiment": [0.2],
        "text_perplexity": [18.5],
        "win_rate": [0.62],
    }
    measured |= {"win_rate_low": [0.55], "win_rate_high": [0.69], "eos_frac": [0.9]}
    config = "evaluator:\n  win_rate:\n    against: runs/dpo/result\n"
    page = show(make_stage("run", "evaluate", {}, measured, config))
    assert not page.figures
    shown = page.text.replace("\u00a0", " ")
    for words in (
        "Reward 0.500 Judge",
        "Win rate against dpo 0.620 95 %: 0.550 to 0.690",
        "eos_frac 0.900",
    ):
        assert words in shown
    for words in (
        "Judge: sentiment 0.400",
        "judge_start/sentiment 0.200",
        "reward/quality 0.700",
        "text_perplexity 18.50",
    ):
        assert words in shown
    assert "reward_start" not in shown


def test_a_collection_is_a_row_of_numbers(make_stage, show):
    page = show(make_stage("run", "rank", {}, {"rankings": [256.0], "tied": [0.1]}))
    assert not page.figures
    assert "rankings 256" in page.text


@pytest.mark.parametrize(
    ("train", "held_out", "kind"),
    [
        (ROLLOUT, ANSWERS, POLICY_GRADIENT),
        ({}, ANSWERS, POLICY_GRADIENT),  # at step 0
        (PAIRS, PAIRS | ANSWERS, PREFERENCE),
        ({"loss": [1.0]}, {"accuracy": [0.5]}, RANKING),
        ({"loss": [1.0]}, {"loss": [1.0]} | ANSWERS, IMITATION),
        ({"loss": [1.0]}, {"loss": [1.0]}, LANGUAGE_MODEL),
    ],
)
def test_somebody_elses_algorithm_is_known_by_what_it_logs(make_stage, train, held_out, kind):
    held_out = {name: values[:1] for name, values in held_out.items()}
    assert kind_of(read_run(make_stage("run", "somebody_elses", train, held_out))) is kind


@pytest.mark.parametrize(("advantages", "buttons"), [([0.5, -0.5], 2), ([0.0, 0.0], 1)])
def test_advantages_are_offered_where_there_are_any(make_stage, show, advantages, buttons):
    folder = make_stage("run", "dpo", PAIRS, PAIRS)
    sample = {"step": 1, "prompt": "p", "response": "a b", "baseline": "c", "scores": {}, "baseline_scores": {}}
    sample |= {"stop": "eos", "tokens": ["a", " b"], "kl": [0.1, 0.2], "advantages": advantages}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    page = show(folder)
    assert [attrs["type"] for tag, attrs in page.elements if tag == "input"] == ["radio"] * buttons
