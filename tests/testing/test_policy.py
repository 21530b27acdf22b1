"""The checks of policies: wrong ones fail those that are about their mistake, right ones none."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from rlhf_core import plugins
from rlhf_core.errors import UserError
from rlhf_core.language_model import LanguageModel
from rlhf_core.scalar_model import ScalarModel
from rlhf_core.testing.checks.policy import CHECKS
from rlhf_core.testing.world import SmallPolicy, text_tokenizer, word_tokenizer
from rlhf_plugins.policy.hf import LoRA

from .mistakes import asked, failed, found_alone, outcomes
from .wrong_policy import MISTAKES


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_is_found_by_its_checks_alone(mistake):
    found_alone(failed(mistake(), "policy", asked(CHECKS, MISTAKES, mistake)), MISTAKES[mistake])


def test_every_check_finds_a_mistake():
    assert {check.name for check in CHECKS} == {name for told in MISTAKES.values() for name in told}


def test_a_policy_that_cannot_be_made_says_why_in_the_first_check():
    class Endless(SmallPolicy):
        def language_model(self, data):
            tokenizer = word_tokenizer()
            tokenizer.eos_token = None
            return LanguageModel(super().language_model(data).model, tokenizer)

    assert "the tokenizer has no end token" in failed(Endless(), "policy", CHECKS)["gives_a_language_model"].came


@dataclass
class LearnedPlaces:
    """A new GPT-2 at each seed: a tied head, dropout, more rows than tokens, no chat template; scores need a path."""

    rlhf_api: ClassVar[int] = 1

    def language_model(self, data):
        tokenizer = text_tokenizer()
        tokenizer.chat_template = None
        ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = GPT2Config(vocab_size=272, n_embd=32, n_layer=1, n_head=1, n_positions=32, attn_pdrop=0.0, **ends)
        return LanguageModel(GPT2LMHeadModel(config), tokenizer)

    def scalar_model(self, path=None):
        if path is None:
            raise UserError("policy.path: null, expected a checkpoint")
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
        return ScalarModel(model, text_tokenizer())


@dataclass
class HalfFrozen(SmallPolicy):
    """Trains the last layer and the head alone."""

    def language_model(self, data):
        made = super().language_model(data)
        made.model.requires_grad_(False)
        made.model.lm_head.requires_grad_(True)
        made.model.model.layers[-1].requires_grad_(True)
        return made


class Warmer(LanguageModel):
    """A subclass that computes log-probs by itself, and keeps itself as the reference."""

    def logprobs(self, packed, temperature=1.0):
        return super().logprobs_and_entropy(packed, temperature)[0]

    def frozen(self):
        return Warmer(copy.deepcopy(self.model).requires_grad_(False).eval(), self.tokenizer)


@dataclass
class OfASubclass(SmallPolicy):
    """Gives a subclass of LanguageModel; its model is in training mode, its weights are large."""

    def language_model(self, data):
        made = super().language_model(data)
        with torch.no_grad():
            made.model.lm_head.weight.mul_(4)
        made.model.train()
        return Warmer(made.model, made.tokenizer)

    def scalar_model(self, path=None):
        if path is None:
            made = self.language_model(None)
            config = copy.deepcopy(made.model.config)
            config.num_labels = 1
            model = AutoModelForSequenceClassification.from_config(config)
            model.model.load_state_dict(made.model.model.state_dict())
            return ScalarModel(model, made.tokenizer)
        return super().scalar_model(path)


@pytest.mark.parametrize(
    "policy", [SmallPolicy(), LearnedPlaces(), HalfFrozen(), OfASubclass()], ids=lambda policy: type(policy).__name__
)
def test_right_policies_pass(policy):
    assert {name: str(outcome) for name, outcome in failed(policy, "policy", CHECKS).items()} == {}


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama with adapters", "tiny", "tiny from a checkpoint"])
def test_ours_pass(name, checkpoints):
    hf, tiny = plugins.load("policy", "hf"), plugins.load("policy", "tiny")
    policy = {
        "llama": hf(path=str(checkpoints["llama"])),
        "gpt2": hf(path=str(checkpoints["gpt2"])),
        "llama with adapters": hf(path=str(checkpoints["llama"]), lora=LoRA(rank=4)),
        "tiny": tiny(vocabulary=300, hidden=32, layers=2, context=32),
        "tiny from a checkpoint": tiny(path=str(checkpoints["llama"])),
    }[name]
    found = outcomes(policy, "policy", CHECKS).values()
    assert [str(outcome) for outcome in found if outcome.status == "failed"] == []
    skipped = {outcome.check.name for outcome in found if outcome.status == "skipped"}
    assert skipped <= ({"scores_start_from_the_policy"} if name == "tiny" else set())
