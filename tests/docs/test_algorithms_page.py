"""docs/algorithms.md: its table is the plugins', its optima are stationary points, its example trains."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from rlhf_core.describe import describe
from rlhf_core.jsonl import JsonLines
from rlhf_core.kernels.kl import kl_estimate
from rlhf_core.plugins import KINDS, available

PAGE = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
OURS = {name: info for name, info in available("algorithm").items() if info.distribution == "rlhf-core"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def table() -> dict[str, list[str]]:
    """The cells of each algorithm's row."""
    lines = re.findall(r"^\| (`\w+` .*) \|$", PAGE.partition("## ")[0], re.MULTILINE)
    rows = [re.split(r" ?(?<!\\)\| ?", line) for line in lines]
    return {row[0].strip("`"): row for row in rows}


def test_every_algorithm_is_in_the_table():
    assert sorted(table()) == sorted(OURS)
    assert {len(row) for row in table().values()} == {6}


@pytest.mark.parametrize("name", OURS)
def test_defaults_are_the_plugins(name):
    fields = {field.name: field.default for field in describe(OURS[name]).fields}
    for key, value in re.findall(r"`(\w+)=(\S+)`", table()[name][4]):
        assert key in KINDS or fields[key].strip("'") == value


@pytest.mark.parametrize("name", OURS)
def test_papers_are_those_of_the_docstring(name):
    doc = describe(OURS[name]).doc
    for number, target in re.findall(r"\[([\d.]+)\]\(\S+/([\d.]+)\)", " ".join(table()[name])):
        assert number == target
        assert number in doc


REFERENCE = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1], dtype=torch.float64)
REWARDS = torch.tensor([0.2, -0.5, 1.0, 0.0, 0.6], dtype=torch.float64)
BETA = 0.8


def expected_gradient(policy: torch.Tensor, where: str, estimator: str) -> torch.Tensor:
    """Of a one-token policy's logits, by all its tokens: the reward's gradient less β times the KL term's."""
    logits = policy.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    kl = kl_estimate(logprobs - REFERENCE.log(), estimator)
    if where == "reward":
        objective = (policy * (REWARDS - BETA * kl).detach() * logprobs).sum()
    else:
        objective = (policy * (REWARDS * logprobs - BETA * kl)).sum()
    return torch.autograd.grad(objective, logits)[0]


def textbook() -> torch.Tensor:
    return torch.softmax(REFERENCE.log() + REWARDS / BETA, 0)


def by_reversed_kl() -> torch.Tensor:
    """β·π_ref/(β + r̄ − r), its r̄ found by bisection."""
    low, high = REWARDS.max() - BETA, REWARDS.max()
    for _ in range(100):
        mean = (low + high) / 2
        total = (BETA * REFERENCE / (BETA + mean - REWARDS)).sum()
        low, high = (mean, high) if total > 1 else (low, mean)
    found = BETA * REFERENCE / (BETA + mean - REWARDS)
    assert float((found * REWARDS).sum()) == pytest.approx(float(mean))
    return found


@pytest.mark.parametrize(
    ("where", "estimator", "optimum"),
    [("reward", "k1", textbook()), ("loss", "k2", textbook()), ("loss", "k3", by_reversed_kl())],
)
def test_optima(where, estimator, optimum):
    assert float(expected_gradient(optimum, where, estimator).abs().max()) < 1e-12
    assert float(expected_gradient(REFERENCE, where, estimator).abs().max()) > 0.01


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_in_the_reward_only_k1_holds(estimator):
    """Near the start the pull of k1 falls with the distance, that of the others with its square."""
    step = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0], dtype=torch.float64)

    def pull(distance: float, where: str, kind: str) -> float:
        policy = torch.softmax(REFERENCE.log() + distance * step, 0)
        return float((expected_gradient(policy, where, kind) - no_kl(policy)).norm())

    assert pull(0.01, "reward", "k1") / pull(0.005, "reward", "k1") == pytest.approx(2, rel=0.05)
    assert pull(0.01, "reward", estimator) / pull(0.005, "reward", estimator) == pytest.approx(4, rel=0.05)
    assert pull(0.01, "loss", "k1") < 1e-12


def no_kl(policy: torch.Tensor) -> torch.Tensor:
    """The reward's gradient alone."""
    return policy * (REWARDS - (policy * REWARDS).sum())


@pytest.fixture
def example(tmp_path, installed):
    """The example as an installed distribution has it."""
    (module,), (registration,) = blocks("python"), blocks("toml")
    installed(tmp_path, "algorithm", "mean_reinforce", module, registration)
    return tmp_path


def test_the_example_is_short():
    (module,) = blocks("python")
    assert len(module.splitlines()) < 60


def test_the_example_trains_as_a_plugin(example, rlhf, data, ppo):
    chosen = ["algorithm=mean_reinforce", "algorithm.steps=2", "evaluator=[win_rate]", f"run_dir={example / 'run'}"]
    done = rlhf(example, "train", *data, *ppo("llama", *chosen), before=f"sys.path.insert(0, {str(example)!r})")
    assert done.returncode == 0, done.stderr
    rows = [row for row in JsonLines(example / "run" / "metrics.jsonl").rows() if row["phase"] == "train"]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["first_ratio_max"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert rows[1]["kl"] != 0  # the first step moved the policy
    assert (example / "run" / "result").is_dir()


def test_the_examples_gradient_is_its_equation(example, start, ppo, monkeypatch):
    monkeypatch.syspath_prepend(example)
    stage = start(*ppo("llama", "trainer.microbatch_tokens=64"))
    algorithm = importlib.import_module("mean_reinforce").MeanReinforce(batch_size=8, eval_prompts=4, kl_coef=0.3)
    model = algorithm.setup(stage.run)
    batch = algorithm.collect(0)
    pieces = [piece for minibatch in algorithm.minibatches(batch) for piece in minibatch]
    assert len(pieces) > 1
    for piece in pieces:
        algorithm.loss(piece).value.backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    old = batch.experience
    rewards = old.scores - 0.3 * old.per_sequence((old.logprobs - old.ref_logprobs) * old.mask)
    logprobs = algorithm.policy.logprobs(old.packed, stage.run.rollout.temperature) * old.mask
    (-((rewards - rewards.mean()) * old.per_sequence(logprobs)).mean()).backward()
    for ours, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-5)
