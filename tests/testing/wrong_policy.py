"""Wrong policies: one mistake each, the checks that have to find it, and a part of what they have to say."""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from rlhf_core.batch import Packed
from rlhf_core.errors import UserError
from rlhf_core.language_model import LanguageModel
from rlhf_core.scalar_model import ScalarModel
from rlhf_core.testing.world import SmallPolicy, language_model, text_tokenizer, word_tokenizer

from .mistakes import register

MISTAKES = {}


def found_by(**told):
    """These checks fail, no others, and each says this."""
    return register(MISTAKES, told)


@dataclass
class Wrong(SmallPolicy):
    """The small policy with models of other classes, and something done to them."""

    kind: ClassVar[type] = LanguageModel
    scorer: ClassVar[type] = ScalarModel

    def language_model(self, data):
        made = super().language_model(data)
        self.change(made)
        return self.kind(made.model, made.tokenizer)

    def scalar_model(self, path=None):
        made = super().scalar_model(path)
        self.change_scores(made)
        return self.scorer(made.model, made.tokenizer)

    def change(self, made):
        """Nothing yet."""

    def change_scores(self, made):
        """Nothing yet."""


def with_model(policy):
    """A class of language models that is what is wrong with a policy."""

    def keep(cls):
        policy.kind = cls
        return cls

    return keep


class Own(LanguageModel):
    """Its reference is of the same class."""

    def frozen(self):
        return type(self)(copy.deepcopy(self.model).requires_grad_(False).eval(), self.tokenizer)


# What it makes, and its tokenizer.


@found_by(gives_a_language_model="it gave Duck")
class GivesSomethingAlike(SmallPolicy):
    """What it gives has all methods of a language model, and is none."""

    def language_model(self, data):
        return Duck(super().language_model(data))


class Duck:
    """Passes everything on."""

    def __init__(self, made):
        self.made = made

    def __getattr__(self, name):
        return getattr(self.__dict__["made"], name)


@found_by(the_tokenizer_fits_the_model="the tokenizer has 9 tokens, the embedding 8 rows")
class AddsATokenToTheTokenizer(Wrong):
    """Adds a token without resizing the embedding."""

    def change(self, made):
        made.tokenizer.add_tokens(["<new>"])

    change_scores = change


@found_by(text_survives_the_tokenizer="with the end token 0 in it")
class EndsEveryText(Wrong):
    """Its tokenizer puts an end token behind every text."""

    def change(self, made):
        encode = made.tokenizer.encode
        made.tokenizer.encode = lambda text, add_special_tokens=True: [*encode(text, add_special_tokens=False), 0]


@found_by(text_survives_the_tokenizer="and then 'a")
class HasNoDecoder(SmallPolicy):
    """A byte-level tokenizer whose decoder was forgotten."""

    def language_model(self, data):
        return language_model(self.tokenizer())

    def scalar_model(self, path=None):
        if path is None:
            raise UserError("policy.path: null, expected a checkpoint folder")
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
        return ScalarModel(model, self.tokenizer())

    def tokenizer(self):
        made = text_tokenizer()
        made.backend_tokenizer.decoder = None
        return made


@found_by(chat_prompts_end_where_the_assistant_speaks="lacks '<assistant>'")
class NoGenerationPrompt(Wrong):
    """Its template does not know add_generation_prompt."""

    def change(self, made):
        made.tokenizer.chat_template = made.tokenizer.chat_template.split("{% if add_generation_prompt")[0]


@found_by(chat_prompts_end_where_the_assistant_speaks="of the user's 'ask' the template makes")
class DropsTheQuestion(Wrong):
    """Its template reads another key than content."""

    def change(self, made):
        made.tokenizer.chat_template = made.tokenizer.chat_template.replace("message.content", "message.text")


@found_by(chat_prompts_end_where_the_assistant_speaks="the conversation is")
class SpeaksAsTheUser(Wrong):
    """The mark at the end of a prompt is not the one that stands before answers."""

    def change(self, made):
        opening = "{% if add_generation_prompt %}"
        made.tokenizer.chat_template = made.tokenizer.chat_template.replace(f"{opening}<assistant>", f"{opening}<user>")


# Its log-probs.


@found_by(gives_one_logprob_a_token="of torch.float64")
class Doubles(Wrong):
    """Log-probs in float64."""


@with_model(Doubles)
class InDouble(Own):
    def logprobs(self, packed, temperature=1.0):
        return super().logprobs(packed, temperature).double()


@found_by(gives_one_logprob_a_token="is not predicted and has")
class ScoresPromptsToo(Wrong):
    """Forgets which tokens are asked for."""


@with_model(ScoresPromptsToo)
class OfAllTokens(Own):
    def _predict(self, packed, temperature, entropy):
        return super()._predict(replace(packed, predicted=None, prompts=()), temperature, entropy)


@found_by(
    gives_one_logprob_a_token="token 1 has",
    probabilities_sum_to_one="words have",
    packed_equals_padded="by the stock forward",
    next_token_agrees_with_logprobs="then by next_token",
    entropy_is_that_of_the_distribution="where −Σ p log p is",
)
class Losses(Wrong):
    """−log p in the place of log p."""


@with_model(Losses)
class Negated(Own):
    def _predict(self, packed, temperature, entropy):
        logprobs, entropies = super()._predict(packed, temperature, entropy)
        return -logprobs, entropies


@found_by(
    probabilities_sum_to_one="words have",
    packed_equals_padded="by the stock forward",
    next_token_agrees_with_logprobs="then by next_token",
)
class NotNormalised(Wrong):
    """Scores of words that are no log-probs."""


@with_model(NotNormalised)
class TooLow(Own):
    def _predict(self, packed, temperature, entropy):
        logprobs, entropies = super()._predict(packed, temperature, entropy)
        return torch.where(logprobs < 0, logprobs - 0.5, 0.0), entropies


@found_by(
    the_temperature_is_applied="nats apart at temperature 1",
    next_token_agrees_with_logprobs="at temperature 0.7",
    entropy_is_that_of_the_distribution="where −Σ p log p is",
)
class WithoutTemperature(Wrong):
    """Log-probs at temperature 1 whatever is asked."""


@with_model(WithoutTemperature)
class AtOne(Own):
    def logprobs(self, packed, temperature=1.0):
        return super().logprobs(packed)

    def logprobs_and_entropy(self, packed, temperature=1.0):
        return super().logprobs(packed), super().logprobs_and_entropy(packed, temperature)[1]


@found_by(packed_equals_apart="in a row with others")
class SeesItsNeighbours(Wrong):
    """Reads a row as one sequence."""


@with_model(SeesItsNeighbours)
class OneSequence(Own):
    def _predict(self, packed, temperature, entropy):
        if len(packed.lengths) != 5 or packed.prompts:
            return super()._predict(packed, temperature, entropy)
        whole = torch.tensor([0, len(packed.tokens)], dtype=torch.int32)
        predicted = packed.positions > 0
        return super()._predict(Packed(packed.tokens, whole, predicted), temperature, entropy)


@found_by(shared_prompts_equal_apart="then behind a shared prompt")
class ForgetsSharedPrompts(Wrong):
    """Of neighbours that share their prompt only the first one sees all of it."""


@with_model(ForgetsSharedPrompts)
class FirstOfAGroup(Own):
    def _predict(self, packed, temperature, entropy):
        if not packed.prompts:
            return super()._predict(packed, temperature, entropy)
        tokens, starts = packed.tokens.clone(), packed.cu_seqlens.tolist()
        for i in range(1, len(packed.prompts)):
            if packed.prompts[i] == packed.prompts[i - 1]:
                tokens[starts[i]] = tokens[starts[i + 1] - 1]
        return super()._predict(replace(packed, tokens=tokens, prompts=()), temperature, entropy)


@found_by(packed_equals_padded="then by the stock forward, padded on the right")
class SharperThanItsCheckpoint(Wrong):
    """Divides logits by a number of its own, everywhere but in the model."""


@with_model(SharperThanItsCheckpoint)
class Sharper(Own):
    def _predict(self, packed, temperature, entropy):
        return super()._predict(packed, 0.8 * temperature, entropy)

    def next_token(self, temperature, dtype=None):
        return super().next_token(0.8 * temperature, dtype)

    def sampler(self, temperature, dtype=None):
        return LanguageModel(self.model, self.tokenizer).sampler(0.8 * temperature, dtype)


@found_by(
    later_tokens_do_not_matter="with other tokens from place 6 on",
    packed_equals_padded="by the stock forward",
    next_token_agrees_with_logprobs="then by next_token",
)
class ReadsAhead(Wrong):
    """A token's log-prob depends on the one behind it."""


@with_model(ReadsAhead)
class Ahead(Own):
    def _predict(self, packed, temperature, entropy):
        logprobs, entropies = super()._predict(packed, temperature, entropy)
        last = torch.zeros_like(logprobs, dtype=torch.bool)
        last[packed.cu_seqlens[1:].long() - 1] = True
        ahead = torch.where(last | (logprobs == 0), 0.0, 0.01 * torch.roll(packed.tokens, -1))
        return logprobs - ahead, entropies


@found_by(sampler_agrees_with_next_token="was drawn", next_token_agrees_with_logprobs="at temperature 0.7")
class SamplesByOtherNumbers(Wrong):
    """next_token without the temperature."""


@with_model(SamplesByOtherNumbers)
class NextAtOne(Own):
    def next_token(self, temperature, dtype=None):
        return super().next_token(1.0, dtype)


@found_by(sampler_agrees_with_next_token="was drawn 500 times of 500")
class GreedySampler(Wrong):
    """Draws the most probable word."""


@with_model(GreedySampler)
class Greedy(Own):
    def sampler(self, temperature, dtype=None):
        distribution = self.next_token(temperature, dtype)

        def draw(hidden, uniform):
            best = distribution(hidden).max(1)
            return best.indices, best.values

        return draw


@found_by(entropy_is_that_of_the_distribution="where −Σ p log p is")
class EntropyInBits(Wrong):
    """Entropies by log2."""


@with_model(EntropyInBits)
class InBits(Own):
    def logprobs_and_entropy(self, packed, temperature=1.0):
        logprobs, entropy = super().logprobs_and_entropy(packed, temperature)
        return logprobs, entropy / 0.6931


@found_by(eval_mode_is_deterministic="they differ by")
class Noisy(Wrong):
    """Noise in eval mode too, too small to matter elsewhere."""


@with_model(Noisy)
class WithNoise(Own):
    def _predict(self, packed, temperature, entropy):
        logprobs, entropies = super()._predict(packed, temperature, entropy)
        return logprobs * (1 + 3e-6 * torch.rand_like(logprobs)), entropies


# What is trained, and the reference.


@found_by(the_same_seed_gives_the_same_model="differs by up to")
class OtherWeightsEachTime(Wrong):
    """Draws weights with a generator that nobody seeds."""

    def change(self, made):
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            for weight in made.model.parameters():
                weight.add_(0.01 * torch.randn(weight.shape, generator=generator))


@found_by(something_is_trained="none of")
class AllFrozen(Wrong):
    """Nothing requires grad."""

    def change(self, made):
        made.model.requires_grad_(False)


@found_by(gradient_reaches_every_parameter="1 of")
class HasASpareParameter(Wrong):
    """A parameter that nothing is computed from."""

    def change(self, made):
        made.model.spare = nn.Parameter(torch.ones(3))


@found_by(gradient_reaches_every_parameter="get none: model.")
class DetachesTheTrunk(Wrong):
    """Cuts the graph below the head."""

    def change(self, made):
        def detached(module, args, output):
            output.last_hidden_state = output.last_hidden_state.detach()
            return output

        made.model.model.register_forward_hook(detached)


@found_by(the_reference_stays="its log-probs have a gradient")
class ReferenceIsThePolicy(Wrong):
    """frozen() gives the policy itself."""


@with_model(ReferenceIsThePolicy)
class NotFrozen(LanguageModel):
    def frozen(self):
        return self


@found_by(the_reference_stays="its log-probs changed by up to")
class ReferenceFollows(Wrong):
    """frozen() has no gradient, and the policy's weights."""


class NoGradient(LanguageModel):
    def _predict(self, packed, temperature, entropy):
        with torch.no_grad():
            return super()._predict(packed, temperature, entropy)


@with_model(ReferenceFollows)
class SharesItsWeights(LanguageModel):
    def frozen(self):
        return NoGradient(self.model, self.tokenizer)


@found_by(the_reference_stays="of the policy itself does not require grad any more")
class FreezesThePolicy(Wrong):
    """frozen() freezes the policy on the way."""


@with_model(FreezesThePolicy)
class FreezesItself(LanguageModel):
    def frozen(self):
        self.model.requires_grad_(False)
        return LanguageModel(copy.deepcopy(self.model).eval(), self.tokenizer)


@found_by(the_reference_starts_as_the_policy="first of the policy, then of its reference")
class ReferenceIsTheBeginning(Wrong):
    """frozen() gives the weights that the model was made with."""


@with_model(ReferenceIsTheBeginning)
class FromTheBeginning(LanguageModel):
    def __post_init__(self):
        super().__post_init__()
        self.begun = copy.deepcopy(self.model).requires_grad_(False).eval()

    def frozen(self):
        return LanguageModel(self.begun, self.tokenizer)


# What it saves.


@found_by(saves_what_was_trained="after steps that changed them by up to")
class SavesTheBeginning(Wrong):
    """save writes the weights that the model was made with."""


@with_model(SavesTheBeginning)
class SavesWhereItBegan(FromTheBeginning):
    frozen = LanguageModel.frozen

    def save(self, folder):
        self.begun.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@found_by(
    is_saved_as_a_plain_checkpoint="log-probs differ by up to", saves_what_was_trained="log-probs differ by up to"
)
class SavesHalf(Wrong):
    """Rounds what it saves to bfloat16."""


@with_model(SavesHalf)
class Rounded(LanguageModel):
    def save(self, folder):
        copy.deepcopy(self.model).bfloat16().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@found_by(is_saved_as_a_plain_checkpoint="transformers finds no tokenizer beside config.json")
class ForgetsTheTokenizer(Wrong):
    """Saves the model alone."""


@with_model(ForgetsTheTokenizer)
class WithoutTokenizer(LanguageModel):
    def save(self, folder):
        self.model.save_pretrained(folder)


@found_by(
    is_saved_as_a_plain_checkpoint="adapters alone were saved", saves_what_was_trained="adapters alone were saved"
)
class SavesAdaptersAlone(Wrong):
    """Saves its adapters without the model that they adapt; its scalar model has none."""

    def language_model(self, data):
        made = SmallPolicy.language_model(self, data)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=32, target_modules="all-linear")
        return Unmerged(get_peft_model(made.model, config), made.tokenizer)


class Unmerged(LanguageModel):
    def save(self, folder):
        self.model.get_base_model().config.save_pretrained(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@found_by(is_saved_as_a_plain_checkpoint="the chat template is")
class LosesTheTemplate(Wrong):
    """Its tokenizer is saved as it came, without the template it was given."""


@with_model(LosesTheTemplate)
class WithoutTemplate(LanguageModel):
    def save(self, folder):
        bare = copy.deepcopy(self.tokenizer)
        bare.chat_template = None
        self.model.save_pretrained(folder)
        bare.save_pretrained(folder)


@found_by(saving_changes_nothing="has other values")
class RoundsItself(Wrong):
    """Rounds its own weights when it saves."""


@with_model(RoundsItself)
class RoundsOnSave(LanguageModel):
    def save(self, folder):
        super().save(folder)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.copy_(weight.bfloat16())


@found_by(saving_changes_nothing="the model is in eval mode")
class SavesInEvalMode(Wrong):
    """Leaves the model in eval mode."""


@with_model(SavesInEvalMode)
class EvalOnSave(LanguageModel):
    def save(self, folder):
        self.model.eval()
        super().save(folder)


# Its scalar model.


@found_by(gives_one_number_a_token="UserError: a policy like this has no scalar model",
          scores_start_from_the_path="it refuses a checkpoint that it saved")  # fmt: skip
class HasNoScores(Wrong):
    """Refuses to make a scalar model."""

    def scalar_model(self, path=None):
        raise UserError("a policy like this has no scalar model")


@found_by(scores_start_from_the_path="of the policy's own start", scores_survive_a_save="then by scalar_model(path)")
class IgnoresThePath(Wrong):
    """Starts from itself, whatever path it is given."""

    def scalar_model(self, path=None):
        return super().scalar_model()


@found_by(scores_start_from_the_policy="differ from the policy's by up to")
class StartsFromNothing(Wrong):
    """Draws new weights where it should start from the policy's."""

    def change_scores(self, made):
        if self.new:
            with torch.no_grad():
                for weight in made.model.model.parameters():
                    weight.normal_(0, 0.1)

    def scalar_model(self, path=None):
        self.new = path is None
        return super().scalar_model(path)


@found_by(scores_share_nothing_with_the_policy="are the policy's own")
class SharesItsTrunk(Wrong):
    """The trunk of both is the same."""

    def language_model(self, data):
        self.made = super().language_model(data)
        return self.made

    def change_scores(self, made):
        if hasattr(self, "made"):
            made.model.model = self.made.model.model


@found_by(scores_have_gradients="its head does not require grad")
class FrozenHead(Wrong):
    """Its head is frozen."""

    def change_scores(self, made):
        made.head.requires_grad_(False)


@found_by(scores_have_gradients="get none: model.model.")
class FrozenTrunkByDetach(Wrong):
    """Reads hidden states without their graph."""

    def change_scores(self, made):
        def detached(module, args, output):
            output.last_hidden_state = output.last_hidden_state.detach()
            return output

        made.model.model.register_forward_hook(detached)


@found_by(scores_survive_a_save="the saved classifier has 2 labels")
class TwoLabels(Wrong):
    """A classifier of two labels, of which the first is read."""

    def scalar_model(self, path=None):
        own = language_model(word_tokenizer())
        config: Any = copy.deepcopy(own.model.config)
        config.num_labels = 2
        if path is None:
            model = AutoModelForSequenceClassification.from_config(config)
            model.model.load_state_dict(own.model.model.state_dict())
        else:
            model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
        return ScalarModel(model, own.tokenizer)


@found_by(gives_one_number_a_token="last() gave")
class ReadsTheFirstToken(Wrong):
    """last() reads another token."""


class First(ScalarModel):
    def last(self, packed):
        return self(packed)[packed.cu_seqlens[:-1].long()]


ReadsTheFirstToken.scorer = First


@found_by(scores_survive_a_save="then by stock transformers less config.score_bias")
class ForgetsTheBias(Wrong):
    """Its checkpoint lacks the bias."""


class NoBias(ScalarModel):
    def save(self, folder):
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


ForgetsTheBias.scorer = NoBias


@found_by(scores_packed_equal_apart="then in a row with others")
class ScoresSeeNeighbours(Wrong):
    """Scores a row as one sequence."""


class OneRow(ScalarModel):
    def forward(self, packed):
        if packed.prompts or len(packed.lengths) != 5:
            return super().forward(packed)
        return super().forward(Packed(packed.tokens, torch.tensor([0, len(packed.tokens)], dtype=torch.int32)))


ScoresSeeNeighbours.scorer = OneRow
