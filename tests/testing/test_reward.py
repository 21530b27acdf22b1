"""What is asked of every reward: each fault is found by its check, ours have none."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from rlhf_core import plugins
from rlhf_core.testing import attempt
from rlhf_core.testing.check import Outcome
from rlhf_core.testing.checks.reward import CHECKS
from rlhf_core.testing.world import language_model, text_tokenizer

from .wrong_reward import RIGHT, WRONG, ChatAlone, HalfModel, Judge, SetupFails


def outcomes(reward: Any) -> list[Outcome]:
    return [attempt(check, reward, "reward") for check in CHECKS]


def failures(reward: Any) -> dict[str, Outcome]:
    return {outcome.check.name: outcome for outcome in outcomes(reward) if outcome.status == "failed"}


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_each_fault_is_found_by_its_check(cls):
    checks, telling = WRONG[cls]
    found = failures(cls())
    assert set(found) == checks, "\n".join(map(str, found.values()))
    assert any(telling in outcome.came for outcome in found.values()), "\n".join(map(str, found.values()))
    assert all(outcome.cure and outcome.expected for outcome in found.values())


@pytest.mark.parametrize("reward", RIGHT, ids=lambda reward: type(reward).__name__)
def test_right_ones_pass(reward):
    assert not failures(reward), "\n".join(map(str, failures(reward).values()))


def test_only_half_precision_excuses_a_coarse_difference(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_: nullcontext())
    assert set(failures(HalfModel())) == {"ignores_the_rest_of_the_batch"}


def test_what_a_reward_does_not_have_is_skipped():
    skipped = {outcome.check.name: outcome.reason for outcome in outcomes(Judge()) if outcome.status == "skipped"}
    assert skipped == {
        "reads_text_alone": "it says that it needs more: reward: needs tokens",
        "totals_its_parts": "it has no parts",
        "gives_parts_that_can_be_logged": "it has no parts",
        "places_its_steps": "it rewards no steps",
        "ignores_the_order_of_steps": "it rewards no steps",
    }


def test_every_check_finds_something():
    found = {name for checks, _ in WRONG.values() for name in checks} | {"reads_chat_and_plain_prompts"}
    assert {check.name for check in CHECKS} == found


def test_prompts_that_cannot_be_read_are_told():
    found = failures(ChatAlone())["reads_chat_and_plain_prompts"]
    assert "IndexError: tuple index out of range, of responses to plain prompts" in found.came
    assert "prompt.shown" in found.cure


def test_a_reward_that_cannot_be_set_up_passes_nothing():
    assert {outcome.status for outcome in outcomes(SetupFails())} == {"failed", "skipped"}
    assert all("reward.path: no such file" in outcome.came for outcome in failures(SetupFails()).values())
    assert len(failures(SetupFails())) == len(CHECKS) - 4


def our(name: str, **settings: Any) -> Any:
    return plugins.load("reward", name)(**settings)


def test_our_rules_pass():
    parts = {"brief": our("length", minimum=1, maximum=10), "new": our("sum", parts={"repetition": our("repetition")})}
    fading = {"brief": {"start": 1.0, "end": 0.0}}
    total = our("sum", parts=parts, weights={"brief": 0.5}, schedules=fading)
    for reward in (our("sentiment", scale=2.0), our("length"), our("repetition", size=2), total):
        assert not failures(reward), "\n".join(map(str, failures(reward).values()))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A chat model with heads of 32, which our attention kernels are for."""
    folder = tmp_path_factory.mktemp("judge")
    language_model(text_tokenizer()).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorers(judge: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two reward models of the same architecture."""
    folders = [tmp_path_factory.mktemp("scorer") for _ in range(2)]
    for number, folder in enumerate(folders):
        model = plugins.load("policy", "hf")(path=judge).scalar_model()
        torch.manual_seed(number)
        model.reset_head(std=0.5)
        model.save(folder)
    return list(map(str, folders))


def test_our_models_pass(judge: str, scorers: list[str]):
    for reward in (
        our("learned", path=scorers[0]),
        our("learned", path=scorers[1], dtype="bfloat16"),
        our("ensemble", paths=scorers, combine="uncertainty"),
        our("ai_judge", path=judge),
    ):
        assert not failures(reward), "\n".join(map(str, failures(reward).values()))
