"""Ranking what the policy says: by a judge, and by people through a file."""

import json

import pytest
import torch

from rlhf_core.contracts.data import Message, Prompt
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError
from rlhf_core.trainer import Trainer
from rlhf_plugins.algorithm.plackett_luce import ranks_of
from rlhf_plugins.data.jsonl import Jsonl
from rlhf_plugins.reward.sentiment import Sentiment


@pytest.fixture
def stage(checkpoints):
    return ["algorithm=rank", "policy=hf", f"policy.path={checkpoints['llama']}", "algorithm.prompts=6",
            "algorithm.responses=3", "rollout.max_new_tokens=6", "seed=3"]  # fmt: skip


class Ends:
    """A judge of whom every response has a score of its own."""

    def setup(self, run):
        """Nothing."""

    def score(self, samples):
        """By length and letters."""
        return torch.tensor([len(text) + sum(map(ord, text)) / 1e5 for text in samples.responses])


def finished(started):
    """Run the stage; its metrics and the rows it wrote."""
    metrics = Trainer(started.run, started.algorithm).fit()
    result = started.run.folder / "result"
    started.algorithm.save(result)
    assert [file.name for file in result.iterdir()] == ["rankings.jsonl"]
    return metrics, [json.loads(line) for line in (result / "rankings.jsonl").read_text().splitlines()]


def test_rows_are_rankings_by_score_that_the_data_plugin_reads(start, stage):
    started = start(*stage, "reward=sentiment")
    started.run.settings.reward = Ends()
    metrics, rows = finished(started)
    assert len(rows) == 6 and metrics["rankings"] == 6 and metrics["tied"] == 0 and "agreement" not in metrics
    for row in rows:
        scores = Ends().score(Samples([], row["responses"])).tolist()
        assert row["scores"] == pytest.approx(scores, abs=1e-5) and len(set(row["responses"])) == 3
        assert tuple(row["ranks"]) == ranks_of(scores) and sorted(row["ranks"]) == [0, 1, 2]
    file = str(started.run.folder / "result" / "rankings.jsonl")
    reader = Jsonl(ranking_files=[file], validation_fraction=0, test_fraction=0)
    reader.setup(0)
    train = set(started.run.data.prompts("train"))
    read = reader.rankings("train")
    assert [(list(one.responses), list(one.ranks)) for one in read] == [(x["responses"], x["ranks"]) for x in rows]
    assert all(one.prompt in train for one in read)
    assert metrics["score"] == pytest.approx(sum(sum(row["scores"]) for row in rows) / 18, abs=1e-4)
    assert metrics["score_best"] == pytest.approx(sum(max(row["scores"]) for row in rows) / 6, abs=1e-4)
    assert started.algorithm.headline(metrics).startswith("6 rankings of 3 responses, 0% of pairs tied, mean score +")
    written = (started.run.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == [0]


def test_a_reward_model_learns_from_the_result(start, stage, tmp_path):
    started = start(*stage, "reward=sentiment")
    rows = finished(started)[1]
    learner = start(*stage[1:3], "algorithm=reward_model", "algorithm.use_data=false",
                    f"algorithm.ranking_files=[{tmp_path / 'run' / 'result'}]")  # fmt: skip
    assert [ranking.ranks for ranking in learner.algorithm.rankings] == [tuple(row["ranks"]) for row in rows]


def test_plain_prompts_stay_plain(start, small_world, tmp_path):
    words = [word for word in small_world.overrides if not word.startswith(("algorithm.", "rollout."))]
    started = start("algorithm=rank", *words, "algorithm.prompts=3", "rollout.max_new_tokens=2")
    rows = finished(started)[1]
    assert [row["prompt"] for row in rows] == ["ask"] * 3
    words = [word for word in words if not word.startswith("reward=")]
    learner = start("algorithm=reward_model", *words, "algorithm.use_data=false",
                    f"algorithm.ranking_files=[{tmp_path / 'run' / 'result'}]")  # fmt: skip
    assert [ranking.prompt for ranking in learner.algorithm.rankings] == [[1]] * 3


def test_each_round_has_other_prompts(start, stage):
    def chosen(number):
        return start(*stage, "reward=sentiment", f"algorithm.round={number}").algorithm.chosen

    rounds = [chosen(number) for number in (1, 2, 3)]
    assert len({prompt for one in rounds for prompt in one}) == 18
    assert chosen(2) == rounds[1]


def test_judges_who_disagree_and_ties(start, stage):
    started = start(*stage, "reward=sentiment", "algorithm.temperature=1000")
    started.run.settings.reward = Ends()
    metrics, rows = finished(started)
    orders = [tuple(row["ranks"]) != ranks_of(row["scores"]) for row in rows]
    assert any(orders) and 0.2 < metrics["agreement"] < 0.8  # of 18 pairs, ordered by coins
    assert "order as the scores' in" in started.algorithm.headline(metrics)
    assert finished(start(*stage, "reward=sentiment", "algorithm.tie=3"))[0]["tied"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "reward: null, but this algorithm scores what it samples"),
        (["reward=sentiment", "algorithm.responses=1"], "algorithm.responses: got 1, expected 2…9"),
        (["reward=sentiment", "algorithm.responses=10"], "algorithm.responses: got 10, expected 2…9"),
        (["reward=sentiment", "algorithm.temperature=-1"], "algorithm.temperature: got -1, expected at least 0"),
        (["reward=sentiment", "algorithm.prompts=0"], "algorithm.prompts: got 0, expected at least 1"),
    ],
)
def test_mistakes(start, stage, words, message):
    with pytest.raises(UserError, match=f"^{message}"):
        start(*stage, *words)


def ranked(folder, count=None):
    """The candidates with ranks, as people give them: the longer the better; the first ``count`` rows."""
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    for row in rows[:count]:
        row["ranks"] = [int(rank) for rank in ranks_of([len(text) for text in row["responses"]])]
    return rows


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_people_rank_through_a_file(rlhf, data, stage, tmp_path):
    words = [*data, *stage, "device=cpu", "algorithm.file=ranked.jsonl", "run_dir=run"]
    stopped = rlhf(tmp_path, "train", *words)
    run = tmp_path / "run"
    assert stopped.returncode == 1
    assert stopped.stderr == (
        "error: algorithm.file: ranked.jsonl lacks the ranks of 6 of 6 rows; to each row of "
        f'{run}/candidates.jsonl add "ranks", one number a response (0 is best, equal is a tie), save as '
        f"ranked.jsonl, then rlhf train resume={run}\n"
    )
    assert not (run / "summary.json").exists() and not (run / "result").exists()
    asked = (run / "candidates.jsonl").read_text()
    assert [set(json.loads(line)) for line in asked.splitlines()] == [{"prompt", "responses"}] * 6

    write(tmp_path / "ranked.jsonl", ranked(run, 4))
    again = rlhf(tmp_path, "train", "resume=run")
    assert again.returncode == 1 and "lacks the ranks of 2 of 6 rows" in again.stderr
    rows = ranked(run)
    write(tmp_path / "ranked.jsonl", [*rows[::-1], rows[0] | {"ranks": [0, 0, 0]}])  # any order; two raters of one row
    done = rlhf(tmp_path, "train", "resume=run")
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "candidates.jsonl").read_text() == asked
    found = [json.loads(line) for line in (run / "result" / "rankings.jsonl").read_text().splitlines()]
    assert found == [*rows[::-1], rows[0] | {"ranks": [0, 0, 0]}]
    assert json.loads((run / "summary.json").read_text())["headline"].startswith("7 rankings of 3 responses")


@pytest.fixture
def waiting(start, stage, tmp_path):
    """A stage whose candidates wait for ranks, and the file where they are expected."""
    started = start(*stage, "reward=sentiment", f"algorithm.file={tmp_path / 'ranked.jsonl'}")
    with pytest.raises(UserError, match="lacks the ranks of 6 of 6 rows"):
        started.algorithm.evaluate(0)
    return started, tmp_path / "ranked.jsonl"


def test_the_judge_is_compared_with_people(waiting):
    started, file = waiting
    rows = ranked(started.run.folder)
    write(file, rows)
    metrics, found = finished(started)
    judge = Sentiment()
    judge.setup(started.run)
    for row, theirs in zip(found, rows, strict=True):
        assert row["ranks"] == theirs["ranks"]
        assert row["scores"] == pytest.approx(judge.score(Samples([], row["responses"])).tolist(), abs=1e-5)
    assert metrics["rankings"] == 6 and "score" in metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["a", "b", "c"]}, "no such prompt and responses among the candidates"),
        ({"prompt": "another"}, "no such prompt and responses among the candidates"),
        ({"prompt": 3}, r"expected a row of candidates\.jsonl with ranks added"),
        ({"ranks": [0, 1]}, r"ranks: got \[0, 1\], expected 3 numbers, one a response; 0 is best, equal is a tie"),
        ({"ranks": [0, 1, "2"]}, r"ranks: got \[0, 1, .*, expected 3 numbers"),
        ({"ranks": [0, 1, float("nan")]}, r"ranks: got \[0, 1, NaN\], expected 3 numbers"),
        ({"ranks": "012"}, 'ranks: got "012", expected 3 numbers'),
    ],
)
def test_a_file_that_does_not_fit_is_refused(waiting, change, message):
    started, file = waiting
    rows = ranked(started.run.folder)
    rows[2] |= change
    write(file, rows)
    with pytest.raises(UserError, match=f"^{file}:3: {message}"):
        started.algorithm.evaluate(0)
    file.write_text("\n{no\n")
    with pytest.raises(UserError, match=rf"^{file}:2: is not JSON"):
        started.algorithm.evaluate(0)


def test_candidates_keep_their_prompts():
    from rlhf_plugins.algorithm.raters import Candidates

    turns = (Message("system", "be kind"), Message("user", "hello"), Message("assistant", "oh"), Message("user", "so?"))
    for prompt in (Prompt(messages=turns), Prompt(text="plain")):
        one = Candidates(prompt, ("a", ""))
        assert Candidates.of(json.loads(json.dumps(one.row))) == one
