"""Stages in rounds: their names, folders and overrides, and a pipeline that goes round, is killed and goes on."""

import json
import re
from pathlib import Path

import pytest

from rlhf_core.errors import UserError
from rlhf_core.hydra_glue import resolve_stage
from rlhf_core.pipeline import plan
from rlhf_core.rounds import turns
from rlhf_core.settings import PipelineSettings

P = Path("/p")


def settings(**more):
    stages = {
        "sft": ["algorithm=sft"],
        "rank": ["policy.path=${stage:ppo|sft}", "algorithm.round=${round}"],
        "reward_model": ["policy.path=${stage:sft}", "algorithm.ranking_files=${stages:rank}"],
        "ppo": ["policy.path=${stage:ppo|sft}", "reward.path=${stage:reward_model}", "algorithm.kl_coef=0.2"],
    }
    values = {"name": "mine", "stages": stages, "rounds": 3, "repeat": ["rank", "reward_model", "ppo"]} | more
    return PipelineSettings(**values)


def overrides(given):
    """Of each stage, without what all have."""
    return {stage.name: stage.overrides[2:] for stage in plan(given, P)}


def test_rounds_follow_one_another():
    found = plan(settings(rounds=2), P)
    names = ["sft", "rank_1", "reward_model_1", "ppo_1", "rank_2", "reward_model_2", "ppo_2"]
    assert [stage.name for stage in found] == [stage.folder for stage in found] == names
    assert found[3].command.startswith("rlhf train seed=0 device=auto policy.path=/p/sft/result")
    assert found[3].command.endswith("run_dir=/p/ppo_1")


def test_one_round_is_numbered_too_and_more_can_follow():
    one, two = (plan(settings(rounds=rounds), P) for rounds in (1, 2))
    assert [stage.name for stage in one] == ["sft", "rank_1", "reward_model_1", "ppo_1"]
    assert [stage.command for stage in two[:4]] == [stage.command for stage in one]


def test_without_repeat_names_stay():
    stages = {"a": ["x=1"], "b": ["path=${stage:a}"]}
    found = plan(PipelineSettings(name="plain", stages=stages), P)
    assert [(stage.name, stage.overrides[2:]) for stage in found] == [("a", ["x=1"]), ("b", ["path=/p/a/result"])]


def test_place_holders_stand_for_the_latest_run():
    found = overrides(settings())
    assert found["rank_1"] == ["policy.path=/p/sft/result", "algorithm.round=1"]
    assert found["rank_3"] == ["policy.path=/p/ppo_2/result", "algorithm.round=3"]
    assert found["reward_model_1"][1] == "algorithm.ranking_files=[/p/rank_1/result]"
    every = "[/p/rank_1/result,/p/rank_2/result,/p/rank_3/result]"
    assert found["reward_model_3"] == ["policy.path=/p/sft/result", f"algorithm.ranking_files={every}"]
    assert found["ppo_1"][:2] == ["policy.path=/p/sft/result", "reward.path=/p/reward_model_1/result"]
    assert found["ppo_2"][:2] == ["policy.path=/p/ppo_1/result", "reward.path=/p/reward_model_2/result"]


def test_a_round_is_named_and_folders_are_escaped():
    given = {"ppo": [P / "ppo_1", P / "a, (b)"], "ppo_1": [P / "ppo_1"], "ppo_2": [P / "a, (b)"], "sft": []}
    assert resolve_stage("x=${stage:ppo_1|sft}", given) == "x=/p/ppo_1"
    assert resolve_stage("x=${stage: sft | ppo }", given) == r"x=/p/a\,\ \(b\)"
    assert resolve_stage("x=${stages:ppo}${stages:sft}", given) == r"x=[/p/ppo_1,/p/a\,\ \(b\)][]"
    assert resolve_stage("x=${round}/${stage:ppo_1}", given, 7) == "x=7//p/ppo_1"


def test_overrides_of_all_rounds_and_of_one():
    # The one for a round wins, wherever it stands on the command line.
    given = {"ppo_2": {"k0": "algorithm.kl_coef=0.7", "k2": "reward=sentiment"}, "ppo": {"k1": "algorithm.kl_coef=0.1"}}
    found = overrides(settings(stage_overrides=given))
    base = ["algorithm.kl_coef=0.2", "algorithm.kl_coef=0.1"]
    assert found["ppo_1"][2:] == found["ppo_3"][2:] == base
    assert found["ppo_2"] == ["policy.path=/p/ppo_1/result", *base, "algorithm.kl_coef=0.7", "reward=sentiment"]


STAGES = "stages: sft, rank, reward_model, ppo"
ROUNDS = "of one round: rank_1, reward_model_1, ppo_1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "rounds: got 0, expected at least 1"),
        ({"repeat": []}, "rounds: got 3, but pipeline mine repeats no stage; name its last ones, e.g. "
                         "repeat=[reward_model,ppo]"),
        ({"repeat": ["pppo"]}, f"repeat: pipeline mine has no stage pppo. Did you mean ppo?; {STAGES}"),
        ({"repeat": ["ppo", "rank"]}, "repeat: got [ppo,rank], expected the last stages in their order, e.g. "
                                      "[reward_model,ppo]"),
        ({"repeat": ["ppo"], "stages": {"ppo_2": [], "ppo": []}},
         "stages.ppo_2: a round of a repeated stage is called so, too; rename the stage"),
        ({"rounds": 1, "stage_overrides": {"ppo_2": {"k0": "seed=1"}}},
         f"ppo_2.seed=1: pipeline mine has no stage ppo_2. Did you mean ppo_1?; {STAGES}; {ROUNDS}"),
        ({"rounds": 1, "stage_overrides": {"reward": {"k0": "scale=1"}}},
         f"reward.scale=1: say for which stage, e.g. STAGE.reward.scale=1; {STAGES}; {ROUNDS}"),
        ({"stages": {"ppo": ["a=${stage:pppo|sft}"]}, "repeat": ["ppo"]},
         "a=${stage:pppo|sft}: no earlier stage pppo. Did you mean ppo?; earlier stages: none"),
        ({"stages": {"sft": [], "ppo": ["a=${stage:ppo}"]}, "repeat": ["ppo"]},
         "a=${stage:ppo}: no earlier stage ppo; earlier stages: sft"),
        ({"stages": {"sft": [], "b": ["a=${stage:c|b}"], "c": []}, "repeat": ["c"]},
         "a=${stage:c|b}: no earlier stage c or b; earlier stages: sft"),
        ({"stages": {"sft": ["a=${round}"], "ppo": []}, "repeat": ["ppo"]},
         "a=${round}: this stage is not in repeat, so it has no round"),
        ({"stages": {"ppo": ["a=${stages:rnk}"]}, "repeat": ["ppo"]},
         "a=${stages:rnk}: no earlier stage rnk; earlier stages: none"),
    ],
)  # fmt: skip
def test_mistakes(given, message):
    with pytest.raises(UserError) as caught:
        plan(settings(**given), P)
    assert str(caught.value) == message


def test_turns_know_their_stage():
    assert [(turn.stage, turn.round) for turn in turns(settings(rounds=1))][:2] == [("sft", None), ("rank", 1)]


MINE = """# @package _global_
name: mine
rounds: 2
repeat: [rank, reward_model, ppo]
stages:
  sft: [{data}, algorithm=sft, policy=hf, policy.path={start}, trainer.max_steps=2]
  rank: [{data}, algorithm=rank, policy=hf, "policy.path=${{stage:ppo|sft}}", reward=sentiment, algorithm.prompts=5,
    algorithm.responses=3, "algorithm.round=${{round}}", rollout.max_new_tokens=6]
  reward_model: [{data}, algorithm=reward_model, policy=hf, "policy.path=${{stage:sft}}", trainer.max_steps=2,
    "algorithm.ranking_files=${{stages:rank}}", algorithm.use_data=false, "evaluator=[ranking_accuracy]"]
  ppo: [{data}, algorithm=ppo, policy=hf, "seed=${{seed}}${{round}}", "policy.path=${{stage:ppo|sft}}", reward=learned,
    "reward.path=${{stage:reward_model}}", algorithm.steps=2, algorithm.batch_size=4, algorithm.eval_prompts=3,
    rollout.max_new_tokens=6, "evaluator=[win_rate]", "evaluator.win_rate.against=${{stage:sft}}"]
"""

KILL_IN_THE_SECOND_ROUND = 'kill_when(lambda row, stage: (stage, row["step"]) == ("reward_model_2", 1))'


@pytest.fixture
def mine(data, checkpoints, tmp_path):
    folder = tmp_path / "mine" / "pipeline"
    folder.mkdir(parents=True)
    words = ", ".join(json.dumps(word) for word in data)
    (folder / "mine.yaml").write_text(MINE.format(data=words, start=checkpoints["llama"]))
    return ("--config-dir", "mine")


def test_two_rounds_are_killed_go_on_and_get_a_third(rlhf, mine, tmp_path):
    words = (*mine, "pipeline=mine", "device=cpu", "run_dir=p", "ppo_2.algorithm.kl_coef=0.5")
    assert rlhf(tmp_path, "pipeline", *words, before=KILL_IN_THE_SECOND_ROUND).returncode == -9
    pipeline = tmp_path / "p"

    def status():
        return {
            stage["name"]: stage["status"] for stage in json.loads((pipeline / "pipeline.json").read_text())["stages"]
        }

    first, second = ([f"{name}_{k}" for name in ("rank", "reward_model", "ppo")] for k in (1, 2))
    assert list(status()) == ["sft", *first, *second]
    assert list(status().values()) == ["done"] * 5 + ["running", "pending"]
    resumed = rlhf(tmp_path, "pipeline", *mine, "resume=p")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert set(status().values()) == {"done"} and "ppo_1: finished before" in resumed.stdout

    def config(stage, key):
        return re.search(rf"^\s*{key}: (.*)$", (pipeline / stage / "config.yaml").read_text(), re.MULTILINE)[1]

    assert [config(f"ppo_{k}", "kl_coef") for k in (1, 2)] == ["0.05", "0.5"]
    assert [config(f"ppo_{k}", "seed") for k in (1, 2)] == ["1", "2"]
    assert f"path: {pipeline / 'ppo_1' / 'result'}" in (pipeline / "ppo_2" / "config.yaml").read_text()
    rows = [(pipeline / f"rank_{k}" / "result" / "rankings.jsonl").read_text().splitlines() for k in (1, 2)]
    prompts = [{json.dumps(json.loads(line)["prompt"]) for line in found} for found in rows]
    assert [len(found) for found in prompts] == [5, 5] and not prompts[0] & prompts[1]
    assert "5 rankings (15 responses)" in (pipeline / "reward_model_1" / "log.txt").read_text()
    assert "10 rankings (30 responses)" in (pipeline / "reward_model_2" / "log.txt").read_text()
    page = (pipeline / "report.html").read_text()
    assert all(name in page for name in status())

    more = rlhf(tmp_path, "pipeline", *mine, "resume=p", "rounds=3")
    assert (more.returncode, more.stderr) == (0, "")
    assert list(status())[-3:] == ["rank_3", "reward_model_3", "ppo_3"] and set(status().values()) == {"done"}
    assert more.stdout.count("finished before") == 7


def test_people_rank_in_a_pipeline(rlhf, mine, tmp_path):
    words = (*mine, "pipeline=mine", "device=cpu", "rounds=1", "run_dir=p", "rank.algorithm.file=ranked_${round}.jsonl")
    stopped = rlhf(tmp_path, "pipeline", *words)
    assert stopped.returncode == 1
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("error: algorithm.file: ranked_1.jsonl lacks the ranks of 5 of 5 rows; to each row of")
    assert line.endswith(f"then rlhf pipeline resume={tmp_path / 'p'}")
    rows = [json.loads(row) for row in (tmp_path / "p" / "rank_1" / "candidates.jsonl").read_text().splitlines()]
    ranked = "".join(json.dumps(row | {"ranks": [1, 0, 2]}) + "\n" for row in rows)
    (tmp_path / "ranked_1.jsonl").write_text(ranked)
    resumed = rlhf(tmp_path, "pipeline", *mine, "resume=p")
    assert (resumed.returncode, resumed.stderr) == (0, "")


def test_the_preset_composes_in_every_round(rlhf, tmp_path):
    shown = rlhf(tmp_path, "pipeline", "pipeline=iterate", "rounds=3", "--cfg", "job")
    assert (shown.returncode, shown.stderr) == (0, "")
    composed = """
from rlhf_core import pipeline
def only_planned(composed):
    for stage in pipeline.plan(composed.settings, composed.folder):
        print(stage.name, type(pipeline.compose(stage, composed.folder).settings.algorithm).__name__)
pipeline.run = only_planned
"""
    planned = rlhf(tmp_path, "pipeline", "pipeline=iterate", "rounds=3", "run_dir=p", before=composed)
    assert (planned.returncode, planned.stderr) == (0, "")
    last = ["rank_3 Rank", "reward_model_3 RewardModel", "ppo_3 PPO"]
    assert planned.stdout.splitlines()[-3:] == last and len(planned.stdout.splitlines()) == 11
