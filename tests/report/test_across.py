"""Runs of different algorithms are put side by side by their answers."""

from rlhf_core.report.across import across
from rlhf_core.report.compare import groups
from rlhf_core.report.read import read

TRAIN = {"reward": [0.1, 0.4], "kl": [0.5, 2.0]}


def answers(win, kl, judge=0.3):
    end = {"win_rate": win, "win_rate_low": win - 0.05, "win_rate_high": win + 0.05, "kl": kl, "length_ratio": 1.1}
    end |= {"judge/sentiment": judge, "reward": 1.0, "reward_gain_sd": 0.8, "length": 22.0}
    start = {"win_rate": 0.5, "win_rate_low": 0.45, "win_rate_high": 0.55, "kl": 0.0, "length_ratio": 1.0}
    start |= {"judge/sentiment": 0.1, "reward": 0.2, "reward_gain_sd": 0.0, "length": 20.0}
    return {name: [start[name], end[name]] for name in end}


def together(*folders):
    return across(groups([pipeline for folder in folders for pipeline in read(folder)]))


def test_win_rate_and_kl_side_by_side(make_stage, show):
    preference = {"loss": [0.69, 0.6], "reward_margin": [0.0, 0.3]}
    folders = [
        make_stage("a", "rloo", TRAIN, answers(0.80, 9.0)),
        make_stage("b", "dpo", preference, answers(0.90, 4.0, judge=0.6)),
        make_stage("c", "rloo", TRAIN, answers(0.70, 2.0)),
    ]
    group = together(*folders)
    assert group.differing == {"algorithm": ["rloo", "rloo", "dpo"]}
    assert [cell.text for cell in group.results["win_rate"]] == ["0.800", "0.700", "0.900"]
    assert group.results["win_rate"][0].interval == "0.750 to 0.850"
    assert [cell.best for cell in group.results["judge/sentiment"]] == [False, False, True]
    assert [cell.text for cell in group.results["kl"]] == ["9", "2", "4"]
    assert "reward" not in group.results  # its scale is each run's own
    page = show(*folders)
    assert page.text.index("Different algorithms") < page.text.index("What differs")
    rates = [trace for trace in page.figure("Win rate")["data"] if "text" in trace]
    assert [(trace["y"], trace["x"]) for trace in rates] == [
        (["b: dpo"], [0.9]),
        (["a: rloo"], [0.8]),
        (["c: rloo"], [0.7]),
    ]
    distances = [trace["x"][0] for trace in page.figure("KL")["data"] if "text" in trace]
    assert distances == [2.0, 4.0, 9.0]
    frontier = {trace["name"]: trace for trace in page.figure("Win rate against KL")["data"] if trace.get("name")}
    assert frontier["b"]["x"] == [0.0, 4.0]


def test_one_algorithm_needs_no_such_group(make_ppo):
    assert together(make_ppo("a"), make_ppo("b", kl_coef=0.2)) is None


def test_stages_without_answers_are_left_out(make_ppo, make_lm):
    assert together(make_ppo("a"), make_lm("b")) is None


def test_pipelines_are_compared_by_their_last_answers(make_stages):
    imitation = ("feedme", {"loss": [3.0, 2.0]}, {"loss": [3.0, 2.0]} | answers(0.6, 1.0))
    one = make_stages("one", feedme=imitation, policy=("ppo", TRAIN, answers(0.9, 12.0)))
    other = make_stages("other", feedme=imitation, preference=("dpo", {"loss": [0.6, 0.5]}, answers(0.8, 6.0)))
    group = together(one, other)
    assert {entry.label: entry.run.algorithm for entry in group.entries} == {"one": "ppo", "other": "dpo"}


def test_without_a_judge_the_gain_is_drawn(make_stage):
    unjudged = {name: values for name, values in answers(0.5, 3.0).items() if "win" not in name and "judge" not in name}
    group = together(make_stage("a", "ppo", TRAIN, unjudged), make_stage("b", "grpo", TRAIN, unjudged))
    assert [panel.title for panel in group.panels] == ["KL", "Reward gain in SD against KL"]
