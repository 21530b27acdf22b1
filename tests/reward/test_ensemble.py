"""Ensembles of reward models: combinations by hand, members that are real, and what is logged."""

import pytest
import torch

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.reward import Samples, score_with_parts
from rlhf_core.errors import UserError
from rlhf_plugins.policy.hf import HF
from rlhf_plugins.policy.tiny import learn_tokenizer
from rlhf_plugins.reward.ensemble import Ensemble
from rlhf_plugins.reward.learned import Learned

SCORES = {"a": [1.0, -2.0], "b": [3.0, -2.0], "c": [-1.0, 4.0]}
ANSWERS = Samples([Prompt(text="?")] * 2, ["x", "y"])


@pytest.fixture
def fixed(monkeypatch):
    """Members whose scores are known."""
    monkeypatch.setattr(Learned, "setup", lambda self, run: None)
    monkeypatch.setattr(Learned, "score", lambda self, samples: torch.tensor(SCORES[self.path]))


# means 1, 0; minima −1, −2; variances ((0² + 2² + 2²)/3, (2² + 2² + 4²)/3) = 8/3, 8
@pytest.mark.parametrize(
    ("combine", "expected"),
    [("mean", [1.0, 0.0]), ("worst", [-1.0, -2.0]), ("uncertainty", [1 - 0.25 * 8 / 3, -0.25 * 8])],
)
def test_combinations_by_hand(fixed, combine, expected):
    reward = Ensemble(list(SCORES), combine, penalty=0.25, scale=2.0)
    reward.setup(None)
    assert reward.score(ANSWERS).tolist() == pytest.approx([2 * value for value in expected])
    total, parts = score_with_parts(reward, ANSWERS)
    assert torch.equal(total, reward.score(ANSWERS))
    assert {name: values.tolist() for name, values in parts.items()} == {
        "mean": [1, 0], "worst": [-1, -2], "disagreement": pytest.approx([(8 / 3) ** 0.5, 8**0.5])
    }  # fmt: skip


def test_one_member_is_itself(fixed):
    for combine in ("mean", "worst", "uncertainty"):
        reward = Ensemble(["b"], combine)
        reward.setup(None)
        assert reward.score(ANSWERS).tolist() == SCORES["b"]


@pytest.fixture(scope="session")
def another(new_model, texts, tmp_path_factory):
    """A reward model of another architecture, size and tokenizer."""
    folder = tmp_path_factory.mktemp("another")
    words = learn_tokenizer(texts[:40], 290)
    new_model("gpt2", vocab_size=len(words), eos_token_id=words.eos_token_id, n_embd=16).save_pretrained(folder / "lm")
    words.save_pretrained(folder / "lm")
    model = HF(path=str(folder / "lm")).scalar_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model.reset_head(std=0.5)
    model.save(folder / "result")
    return folder / "result"


def test_members_score_as_they_do_alone(start, ppo, reward_checkpoint, another):
    paths = [str(reward_checkpoint), str(another)]
    words = [word for word in ppo("llama") if not word.startswith("reward")]
    chosen = ["reward=ensemble", "reward.combine=worst", f"reward.paths=[{','.join(paths)}]"]
    started = start(*words, *chosen)
    samples = started.algorithm.sample(0).samples
    alone = []
    for path in paths:
        member = Learned(path=path)
        member.setup(started.run)
        alone.append(member.score(samples))
    torch.testing.assert_close(started.run.reward.score(samples), torch.minimum(*alone), rtol=0, atol=1e-6)
    metrics = started.algorithm.collect(0).metrics
    spread = (alone[0] - alone[1]).abs() / 2
    assert metrics["reward/disagreement"] == pytest.approx(float(spread.mean()), abs=1e-5)
    assert metrics["reward"] == pytest.approx(metrics["reward/worst"]) and metrics["reward/mean"] > metrics["reward"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"paths": []}, r"^reward\.paths: empty, expected result folders of reward_model stages"),
        ({"combine": "min"}, r"^reward\.combine: got 'min', expected mean or worst or uncertainty"),
        ({"paths": ["GOOD", "nowhere"]}, r"^reward\.paths\[1\]: no reward model in 'nowhere'"),
    ],
)
def test_mistakes(start, checkpoints, reward_checkpoint, words, message):
    run = start("algorithm=reward_model", "policy=hf", f"policy.path={checkpoints['llama']}").run
    paths = [str(reward_checkpoint) if path == "GOOD" else path for path in words.get("paths", ["GOOD"])]
    with pytest.raises(UserError, match=message):
        Ensemble(paths, words.get("combine", "mean")).setup(run)
