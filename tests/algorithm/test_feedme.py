"""FeedME: exactly the best are imitated, whoever rates them, and a resumed run sees the samples of the first."""

import json
import math

import pytest
import torch

from rlhf_core.errors import UserError
from rlhf_core.trainer import Trainer
from rlhf_plugins.algorithm import feedme


@pytest.fixture
def stage(checkpoints):
    return [
        "algorithm=feedme", "policy=hf", f"policy.path={checkpoints['llama']}", "algorithm.batch_size=6", "seed=3",
        "algorithm.eval_prompts=3", "algorithm.eval_examples=7", "rollout.max_new_tokens=6",
    ]  # fmt: skip


@pytest.fixture
def by_reward(stage, reward_checkpoint):
    words = ["algorithm.source=reward", "reward=learned", f"reward.path={reward_checkpoint}"]
    return [*stage, *words, "algorithm.prompts=20", "algorithm.samples=4"]


@pytest.fixture
def drawn(monkeypatch):
    """What is sampled and scored, as it happens."""
    found = []
    sample = feedme.sample_and_score

    def spy(*arguments):
        found.append(sample(*arguments))
        return found[-1]

    monkeypatch.setattr(feedme, "sample_and_score", spy)
    return found


def test_exactly_the_best_rated_are_imitated(start, stage):
    started = start(*stage)
    expected = set()
    for row in started.run.data.rankings("train"):
        if any(rank != row.ranks[0] for rank in row.ranks):
            expected |= {
                (row.prompt, r) for r, rank in zip(row.responses, row.ranks, strict=True) if rank == min(row.ranks)
            }
    tokenizer = started.algorithm.model.tokenizer
    found = [
        (tokenizer.decode(tokens[:given]), tokenizer.decode(tokens[given:-1]).strip(), tokens[-1])
        for tokens, given in started.algorithm.examples
    ]
    assert len(found) == len(set(found)) == len(expected)
    assert {response for _, response, _ in found} == {response for _, response in expected}
    assert {end for *_, end in found} == {started.algorithm.model.end}
    shown = sorted(prompt.shown for prompt, _ in expected)
    assert sorted(text.split("<|user|>")[1].split("<|")[0].strip() for text, *_ in found) == shown


def test_ties_for_the_first_place_all_count_and_each_response_once(start, stage, tmp_path):
    rows = [
        {"prompt": "ask", "responses": ["one", "two", "three"], "ranks": [0, 0, 2]},
        {"prompt": "ask", "responses": ["two", "four"], "ranks": [1, 2]},
        {"prompt": "ask", "responses": ["five", "six"], "ranks": [3, 3]},
        {"prompt": "say", "responses": ["two", "three"], "ranks": [5, 1]},
    ]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"data.ranking_files=[{tmp_path / 'few.jsonl'}]", "data.test_fraction=0", "data.validation_fraction=0"]
    algorithm = start(*stage[:-1], *files, "rollout=null").algorithm
    responses = [algorithm.model.tokenizer.decode(tokens[given:-1]).strip() for tokens, given in algorithm.examples]
    assert responses == ["one", "two", "three"]
    assert algorithm.evaluate(0) == {}
    assert algorithm.headline({}) == "nothing measured: the data have no examples in 'test'"


def test_demonstrations_are_mixed_in(start, stage):
    alone, mixed = (start(*stage, f"algorithm.demonstrations={flag}").algorithm.examples for flag in ("false", "true"))
    demonstrations = start("algorithm=sft", *stage[1:5]).algorithm.examples
    assert mixed == alone + demonstrations and alone and demonstrations


def test_the_rewards_favourite_of_each_prompts_samples_is_imitated(start, by_reward, drawn):
    started = start(*by_reward)
    train = drawn[0]
    assert len(train.scores) == 80 and len(started.algorithm.examples) == 20
    prompts = started.run.data.prompts("train")
    assert [prompt.shown for prompt in train.samples.prompts[::4]] == [
        prompts[place * len(prompts) // 20].shown for place in range(20)
    ]
    for place, (tokens, given) in enumerate(started.algorithm.examples):
        scores = train.scores[4 * place : 4 * place + 4].tolist()
        best = 4 * place + scores.index(max(scores))
        assert tokens == [*train.samples.prompt_ids[best], *train.samples.response_ids[best]]
        assert given == len(train.samples.prompt_ids[best])
        assert scores.count(max(scores)) < 4
    assert len(drawn[1].scores) == 7 * 4  # held out: the best of other prompts' samples


def test_samples_are_of_the_start_and_follow_from_the_seed(start, by_reward):
    one, other = (start(*by_reward).algorithm for _ in range(2))
    assert one.examples == other.examples and one.held_out == other.held_out
    assert start(*by_reward, "seed=4").algorithm.examples != one.examples
    one.run.settings.trainer.max_steps = 2
    Trainer(one.run, one).fit()
    learned = [parameter.clone() for parameter in one.model.model.parameters()]
    again = start(*by_reward).algorithm
    assert again.examples == other.examples  # whatever a checkpoint holds
    assert any(not torch.equal(p, q) for p, q in zip(learned, again.model.model.parameters(), strict=True))


def test_the_policy_becomes_best_of_n(start, small_world):
    """P(best of n = y) = F(y)ⁿ − F(below y)ⁿ, F the start's distribution function by reward."""
    n, count = 4, 512
    words = [
        "algorithm=feedme", *small_world.overrides, "algorithm.source=reward", f"algorithm.samples={n}",
        f"algorithm.prompts={count}", "algorithm.batch_size=100000", "algorithm.epochs=60",
        "algorithm.optimizer.lr=0.02", "algorithm.optimizer.warmup_steps=0", "algorithm.optimizer.weight_decay=0",
        "algorithm.eval_examples=1",
    ]  # fmt: skip
    started = start(*words)
    started.run.settings.reward = small_world.reward
    before = small_world.distribution(small_world.start())
    order = small_world.rewards.argsort()
    below = torch.cat([torch.zeros(1), before[order].cumsum(0)])
    expected = torch.zeros(8)
    expected[order] = below[1:] ** n - below[:-1] ** n
    trainer = Trainer(started.run, started.algorithm)
    answered = torch.bincount(
        torch.tensor([tokens[given] for tokens, given in started.algorithm.examples]), minlength=8
    )
    spread = (expected * (1 - expected) / count).sqrt()
    assert bool(((answered / count - expected).abs() < 4 * spread + 1e-3).all())
    trainer.fit()
    found = small_world.distribution(started.algorithm.model.model)
    assert float((found - answered / count).abs().sum() / 2) < 0.01
    assert float((found - expected).abs().sum() / 2) < 0.05 < 0.2 < float((before - expected).abs().sum() / 2)
    kl = float((found * (found / before).log()).sum())
    assert 0.1 < kl < math.log(n) - (n - 1) / n + 0.05


def test_evaluation_is_of_held_out_examples_and_of_answers(start, stage):
    started = start(*stage, "evaluator=[win_rate]")
    found = started.algorithm.evaluate(0)
    assert found["win_rate"] == 0.5 and found["length_ratio"] == 1 and found["kl"] == pytest.approx(0, abs=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-4)
    headline = started.algorithm.headline(found)
    assert headline.startswith("held-out perplexity") and "KL" in headline and "wins 50%" in headline


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.source=people"], "algorithm.source: got 'people', expected ratings or reward"),
        (["algorithm.samples=0"], "algorithm.samples: got 0, expected at least 1"),
        (["algorithm.prompts=0"], "algorithm.prompts: got 0, expected at least 1"),
        (["algorithm.eval_prompts=0"], "algorithm.eval_prompts: got 0, expected at least 1"),
        (["algorithm.source=reward"], "reward: null, but this algorithm scores what it samples"),
        (["algorithm.source=reward", "reward=length", "rollout=null"], "rollout: null, but this algorithm samples"),
        (["algorithm.source=reward", "reward=length", "rollout.top_p=0.9"], "rollout.top_p: got 0.9, but"),
        (["data.ranking_files=[]"], "data=jsonl has no ranking rows; set data.ranking_files=[FILE]"),
    ],
)
def test_refusals(start, stage, overrides, message):
    words = [word for word in stage if "rollout=null" not in overrides or not word.startswith("rollout.")]
    with pytest.raises(UserError) as caught:
        start(*words, *overrides)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


KILL = 'kill_when(lambda row, _: (row["step"], row["phase"]) == (3, "train"))'


def test_a_killed_run_goes_on_with_the_samples_it_began_with(rlhf, data, by_reward, tmp_path):
    words = [*data, *by_reward, "algorithm.epochs=2", "algorithm.optimizer.lr=3e-3", "device=cpu", "threads=1"]
    words += ["trainer.checkpoint_every=2"]
    whole = rlhf(tmp_path, "train", *words, "run_dir=whole")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert rlhf(tmp_path, "train", *words, "run_dir=killed", before=KILL).returncode == -9
    resumed = rlhf(tmp_path, "train", "resume=killed")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    for name in ("metrics.jsonl", "samples.jsonl", "result/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
