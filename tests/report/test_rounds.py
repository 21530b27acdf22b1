"""A pipeline that goes round, and one whose stages have other names than the default's."""

import pytest

ROLLOUT = {"reward": [0.1, 0.4], "kl": [0.5, 2.0], "kl_coef": [0.05, 0.05]}


def policy(judge, reward):
    """A policy stage whose gold judge and learned reward begin and end so."""
    held_out = {"judge/learned": list(judge), "judge_start/learned": [judge[0]] * 2, "reward": list(reward)}
    return "ppo", ROLLOUT, held_out | {"reward_start": [reward[0]] * 2, "kl": [0.0, 3.0], "length": [20.0, 20.0]}


RANK = ("rank", {}, {"rankings": [64.0]})
REWARD_MODEL = ("reward_model", {"loss": [0.7, 0.6], "accuracy": [0.5, 0.7]}, {"accuracy": [0.5, 0.7]})


@pytest.fixture
def three_rounds(make_stages):
    ends = [((0.1, 0.5), (0.0, 2.0)), ((0.5, 0.8), (-0.3, 1.5)), ((0.8, 0.7), (0.1, 3.0))]
    stages = {}
    for number, (judge, reward) in enumerate(ends, 1):
        stages |= {
            f"rank_{number}": RANK,
            f"reward_model_{number}": REWARD_MODEL,
            f"ppo_{number}": policy(judge, reward),
        }
    return make_stages("rounds", **stages)


def test_judge_and_reward_over_rounds(three_rounds, show):
    page = show(three_rounds)
    lines = [trace for trace in page.figure("Reward and judges over rounds")["data"] if trace.get("name")]
    assert [line["name"] for line in lines] == ["ppo_1", "ppo_2", "ppo_3"] * 2
    assert [line["x"] for line in lines] == [[0, 1], [1, 2], [2, 3]] * 2
    judge, reward = lines[:3], lines[3:]
    assert [line["y"] for line in judge] == [[0.1, 0.5], [0.5, 0.8], [0.8, 0.7]]
    assert [line["y"] for line in reward] == [[0.0, 2.0], [-0.3, 1.5], [0.1, 3.0]]
    assert "Learned: 0.100 → 0.500 → 0.800 → 0.700." in page.text


def test_every_round_has_its_sections(three_rounds, show):
    page = show(three_rounds)
    assert len(page.of_class("stage")) == 9
    for name in ("rank_1", "reward_model_2", "ppo_3"):
        assert page.text.count(name) >= 3  # the summary, the timeline, its section
    assert page.titles().count("Agreement with human raters") == 3
    assert page.titles().count("Reward against KL") == 3


def test_one_round_is_no_comparison(make_stages, pipeline, show):
    one = make_stages("one", rank_1=RANK, policy_1=policy((0.1, 0.5), (0.0, 1.0)))
    for folder in (one, pipeline):
        assert "over rounds" not in show(folder).text


def test_a_round_without_the_judge_is_left_out(make_stages, show):
    algorithm, train, held_out = policy((0.2, 0.4), (0.0, 1.0))
    unjudged = {name: values for name, values in held_out.items() if "judge" not in name}
    page = show(make_stages("some", a=(algorithm, train, unjudged), b=(algorithm, train, held_out)))
    lines = [trace for trace in page.figure("Reward and judges over rounds")["data"] if trace.get("name")]
    assert [(line["name"], line["x"]) for line in lines] == [("b", [1, 2]), ("a", [0, 1]), ("b", [1, 2])]


def test_the_judge_begins_at_the_stages_own_start_whatever_the_opponent_scores(make_stages, show):
    algorithm, train, held_out = policy((0.5, 0.8), (0.0, 1.0))
    second = (algorithm, train, held_out | {"judge_start/learned": [0.1, 0.1]})  # evaluator.win_rate.against
    page = show(make_stages("some", ppo_1=policy((0.1, 0.5), (0.0, 1.0)), ppo_2=second))
    lines = [trace for trace in page.figure("Reward and judges over rounds")["data"] if trace.get("name")]
    assert [line["y"] for line in lines[:2]] == [[0.1, 0.5], [0.5, 0.8]]
    assert "Judge: learned 0.800 from 0.500" in page.text


def test_rounds_that_have_only_begun(three_rounds, show):
    for number in (2, 3):
        for name in ("summary.json", "metrics.jsonl"):
            (three_rounds / f"ppo_{number}" / name).unlink()
    assert "over rounds" not in show(three_rounds).text
