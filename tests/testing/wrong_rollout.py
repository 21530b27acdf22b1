"""Wrong rollout engines: one mistake each, the checks that have to find it, and a part of what they have to say."""

import random
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlhf_core.contracts.rollout import Rollout

from .mistakes import register
from .right_rollout import SideBySide

MISTAKES = {}


def found_by(**told):
    """These checks fail, no others, and each says this."""
    return register(MISTAKES, told)


@dataclass
class Changing(SideBySide):
    """Right, and then something is done to what it gives."""

    def generate(self, model, prompts, generator):
        return self.change(model, super().generate(model, prompts, generator))


@found_by(says_how_it_samples="temperature is '1.0'")
@dataclass
class TemperatureAsText(SideBySide):
    """Its temperature is text as it came from a file."""

    temperature: str = "1.0"


@found_by(gives_one_response_a_prompt="generate() gave Bare")
class GivesATuple(SideBySide):
    """Responses and so on without a Rollout around them; whatever reads it by name fails."""

    def generate(self, model, prompts, generator):
        rollout = super().generate(model, prompts, generator)
        return Bare((rollout.prompts, rollout.responses, rollout.logprobs, rollout.stops), rollout)


class Bare(tuple):
    """A tuple that has the attributes as well, so that one check alone is about it."""

    def __new__(cls, values, rollout):
        return super().__new__(cls, values)

    def __init__(self, values, rollout):
        self.__dict__.update(vars(rollout))


@found_by(gives_one_response_a_prompt="after the call")
class WritesIntoThePrompts(SideBySide):
    """Appends what it sampled to the lists that it was handed."""

    def generate(self, model, prompts, generator):
        rollout = super().generate(model, [list(prompt) for prompt in prompts], generator)
        for prompt, response in zip(prompts, rollout.responses, strict=True):
            prompt.extend(response)
        return rollout


@found_by(gives_one_response_a_prompt="handed back")
class PadsThePromptsBack(Changing):
    """Hands the prompts back as the padded batch had them."""

    def change(self, model, rollout):
        longest = max(map(len, rollout.prompts), default=0)
        padded = [[1] * (longest - len(prompt)) + list(prompt) for prompt in rollout.prompts]
        return replace(rollout, prompts=padded)


@found_by(gives_one_response_a_prompt="stops for 7 prompts")
class ForgetsAStop(Changing):
    """One stop too few."""

    def change(self, model, rollout):
        return replace(rollout, stops=rollout.stops[:-1])


@found_by(gives_one_response_a_prompt="6 logprobs for 7 prompts")
class ForgetsALogprob(Changing):
    """No log-probs of the last response."""

    def change(self, model, rollout):
        return replace(rollout, logprobs=rollout.logprobs[:-1])


@found_by(gives_one_response_a_prompt="6 responses for 7 prompts", parts_give_what_the_whole_gives="within the whole")
class OneForEqualNeighbours(SideBySide):
    """Answers a prompt once where neighbours share it, in small batches."""

    def generate(self, model, prompts, generator):
        rollout = super().generate(model, prompts, generator)
        if len(prompts) > 10:
            return rollout
        kept = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
        return Rollout(
            prompts, *([values[i] for i in kept] for values in (rollout.responses, rollout.logprobs, rollout.stops))
        )


@found_by(answers_in_the_order_of_the_prompts="from a model that surely goes on with")
class SortsByLength(SideBySide):
    """Sorts prompts by length, and hands the responses back in that order."""

    def generate(self, model, prompts, generator):
        return replace(super().generate(model, sorted(prompts, key=len), generator), prompts=prompts)


@found_by(answers_in_the_order_of_the_prompts="from a model that surely goes on with")
class AsTheyFinish(Changing):
    """Collects responses as they end, the shortest first."""

    def change(self, model, rollout):
        order = sorted(range(len(rollout.responses)), key=lambda i: len(rollout.responses[i]))
        lists = {name: [getattr(rollout, name)[i] for i in order] for name in ("responses", "logprobs", "stops")}
        return replace(rollout, **lists)


@found_by(
    answers_in_the_order_of_the_prompts="begins with its prompt",
    logprobs_fit_their_responses="has log-probs of shape",
)
class KeepsThePrompt(Changing):
    """Gives prompt and response together, as a stock generate does."""

    def change(self, model, rollout):
        pairs = zip(rollout.prompts, rollout.responses, strict=True)
        return replace(rollout, responses=[[*prompt, *response] for prompt, response in pairs])


@found_by(
    tokens_are_of_the_vocabulary="is -1, of a vocabulary of 8", logprobs_fit_their_responses="has log-probs of shape"
)
class FillsUpWithMinusOne(Changing):
    """Responses that were cut are filled up to a common length."""

    def change(self, model, rollout):
        return replace(rollout, responses=[r if r[-1:] == [model.end] else [*r, -1] for r in rollout.responses])


@found_by(tokens_are_of_the_vocabulary="is 2.0")
class TokensAsFloats(Changing):
    """Went through a float tensor on the way."""

    def change(self, model, rollout):
        return replace(rollout, responses=[[float(token) for token in r] for r in rollout.responses])


@found_by(stops_are_right="does not end with the end token 0", logprobs_fit_their_responses="has log-probs of shape")
class DropsTheEnd(Changing):
    """Leaves the end token out of the response."""

    def change(self, model, rollout):
        cut = [r[:-1] if r[-1:] == [model.end] else r for r in rollout.responses]
        return replace(rollout, responses=cut)


@found_by(stops_are_right="ends with the end token 0")
class StopsByTheLength(Changing):
    """Says that a response was cut where it is as long as it could be, whatever it ends with."""

    def change(self, model, rollout):
        full = [len(r) == self.max_new_tokens for r in rollout.responses]
        return replace(rollout, stops=["length" if cut else "eos" for cut in full])


@found_by(stops_are_right="with stop 'stop'")
class StopsOfAnotherLibrary(Changing):
    """Says 'stop' where 'eos' is expected."""

    def change(self, model, rollout):
        return replace(rollout, stops=[{"eos": "stop"}.get(stop, stop) for stop in rollout.stops])


@found_by(stops_are_right="does not end with the end token 0")
class AlwaysEos(Changing):
    """Says 'eos' of every response."""

    def change(self, model, rollout):
        return replace(rollout, stops=["eos"] * len(rollout.stops))


@found_by(stops_are_right="goes on after its end token")
class GoesOnAfterTheEnd(SideBySide):
    """Samples up to the limit, and says 'eos' where an end token came up."""

    def ended(self, model, response):
        return len(response) == self.max_new_tokens

    def finished(self, model, prompts, responses, logprobs):
        stops = ["eos" if model.end in response else "length" for response in responses]
        return Rollout(prompts, responses, logprobs, stops)


@found_by(logprobs_fit_their_responses="has log-probs of shape")
class PaddedLogprobs(Changing):
    """Rows of log-probs of one length, zeros behind."""

    def change(self, model, rollout):
        return replace(rollout, logprobs=[torch.nn.functional.pad(row, (0, 9)) for row in rollout.logprobs])


@found_by(logprobs_fit_their_responses="torch.float64")
class DoubleLogprobs(Changing):
    """In float64."""

    def change(self, model, rollout):
        return replace(rollout, logprobs=[row.double() for row in rollout.logprobs])


@found_by(logprobs_fit_their_responses="has a list of log-probs")
class LogprobsAsLists(Changing):
    """Not tensors."""

    def change(self, model, rollout):
        return replace(rollout, logprobs=[row.tolist() for row in rollout.logprobs])


@found_by(logprobs_fit_their_responses="require grad")
class LogprobsWithAGraph(Changing):
    """Forgot to detach."""

    def change(self, model, rollout):
        return replace(rollout, logprobs=[row.clone().requires_grad_() for row in rollout.logprobs])


@found_by(says_which_tokens_were_chosen="flags in chosen")
class ChosenOfTheLongest(Changing):
    """Flags of one length for all."""

    def change(self, model, rollout):
        longest = max(map(len, rollout.responses), default=0)
        return replace(rollout, chosen=[[True] * longest for _ in rollout.responses])


@found_by(says_which_tokens_were_chosen="has log-prob -")
class LogprobsOfWhatWasPutThere(Changing):
    """Says that a token was not chosen, and gives its log-prob all the same."""

    def change(self, model, rollout):
        return replace(rollout, chosen=[[True] * (len(r) - 1) + [False] for r in rollout.responses])


@found_by(survives_no_prompts="ValueError")
class NeedsAPrompt(SideBySide):
    """Takes the longest of no prompts."""

    def generate(self, model, prompts, generator):
        max(map(len, prompts))
        return super().generate(model, prompts, generator)


@found_by(logprobs_are_those_of_a_fresh_forward="; each is that of the token after it")
class OneTokenLate(Changing):
    """Log-probs a token off."""

    def change(self, model, rollout):
        return replace(rollout, logprobs=[torch.cat([row[1:], row[-1:]]) for row in rollout.logprobs])


@found_by(logprobs_are_those_of_a_fresh_forward="; they are negated")
class Losses(SideBySide):
    """Records −log p."""

    def recorded(self, words, token):
        return -float(words[token])


@found_by(logprobs_are_those_of_a_fresh_forward="; they are probabilities")
class Probabilities(SideBySide):
    """Records p."""

    def recorded(self, words, token):
        return float(words[token].exp())


@found_by(logprobs_are_those_of_a_fresh_forward="; they are all 0")
class NoLogprobs(SideBySide):
    """Records nothing."""

    def recorded(self, words, token):
        return 0.0


@found_by(logprobs_are_those_of_a_fresh_forward="recorded with nan")
class NotANumber(Changing):
    """One log-prob in the middle is nan."""

    def change(self, model, rollout):
        rows = [row.clone() for row in rollout.logprobs]
        if len(rows) > 9:
            rows[9][0] = float("nan")
        return replace(rollout, logprobs=rows)


@found_by(logprobs_are_at_the_temperature="they are those at temperature 1")
class RecordsAtTemperatureOne(SideBySide):
    """Samples at the temperature, and records log-probs without it."""

    def recorded(self, words, token):
        return float((words * self.temperature).log_softmax(-1)[token])


@found_by(samples_follow_the_policy="as at temperature 1", greedy_is_reproducible="nats more probable")
class SamplesAtTemperatureOne(SideBySide):
    """Records log-probs at the temperature, and samples without it."""

    def draw(self, words, uniform):
        return super().draw((words * self.temperature).log_softmax(-1), uniform)


@found_by(
    logprobs_are_at_the_temperature="they are those at temperature 1",
    samples_follow_the_policy="as at temperature 1",
    greedy_is_reproducible="nats more probable",
)
class IgnoresTheTemperature(SideBySide):
    """Neither samples by it nor records it."""

    def distribution(self, model, tokens):
        return (super().distribution(model, tokens) * self.temperature).log_softmax(-1)


@found_by(logprobs_are_of_the_full_distribution="after words outside the nucleus were cut off")
class RecordsTheNucleus(SideBySide):
    """Records log-probs after top-p has cut words off."""

    def recorded(self, words, token):
        p, order = words.exp().sort(descending=True)
        kept = order[p.cumsum(0) - p < self.top_p]
        return float(words[token] - words[kept].logsumexp(0))


@found_by(samples_stay_in_the_nucleus="where more probable ones have")
class IgnoresTopP(SideBySide):
    """Has the setting and does nothing with it."""

    def draw(self, words, uniform):
        return replace(self, top_p=1.0).draw(words, uniform) if self.top_p != 1 else super().draw(words, uniform)


@found_by(samples_follow_the_policy="of 1000 responses was")
class AlwaysANucleus(SideBySide):
    """Cuts off the last twentieth, whatever top_p says."""

    def draw(self, words, uniform):
        return SideBySide.draw(replace(self, top_p=min(self.top_p, 0.9)), words, uniform)


@found_by(
    samples_follow_the_policy="of 1000 responses was",
    another_state_gives_other_responses="another seed gave the same",
    copies_of_a_prompt_get_their_own_responses="are all",
)
class AlwaysGreedy(SideBySide):
    """Takes the most probable word."""

    def draw(self, words, uniform):
        return words.argmax(1)


@found_by(samples_follow_the_policy="less surprising than they would be")
class GreedyAfterTheFirst(SideBySide):
    """Samples the first word alone."""

    def generate(self, model, prompts, generator):
        self.steps = 0
        return super().generate(model, prompts, generator)

    def draw(self, words, uniform):
        self.steps += 1
        return super().draw(words, uniform) if self.steps == 1 else words.argmax(1)


@found_by(samples_follow_the_policy="'<end>' 0 times", samples_stay_in_the_nucleus="where more probable ones have")
class NeverEndsAtOnce(SideBySide):
    """Forbids the end token as the first word."""

    def generate(self, model, prompts, generator):
        self.end = model.end
        self.steps = 0
        return super().generate(model, prompts, generator)

    def draw(self, words, uniform):
        self.steps += 1
        allowed = words.clone()
        if self.steps == 1:
            allowed[:, self.end] = -1e9
        return super().draw(allowed, uniform)


@found_by(draws_with_the_generator_alone="torch's global generator had another state")
class IgnoresTheGenerator(SideBySide):
    """Draws with torch's global generator."""

    draws_per_response = None

    def uniform(self, count, generator):
        return super().uniform(count, None)


@found_by(draws_with_the_generator_alone="torch's global generator had another state")
class SeedsGlobally(SideBySide):
    """Seeds torch by the generator, and draws with the global one."""

    def uniform(self, count, generator):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return torch.rand(count, self.max_new_tokens, dtype=torch.float64)

    draws_per_response = None


@found_by(draws_with_the_generator_alone="Python's random had another state")
class DrawsWithPython(SideBySide):
    """Shuffles with Python's random on the way."""

    def generate(self, model, prompts, generator):
        random.random()
        return super().generate(model, prompts, generator)


@found_by(draws_with_the_generator_alone="numpy.random had another state")
class DrawsWithNumpy(SideBySide):
    """Draws with numpy."""

    def generate(self, model, prompts, generator):
        np.random.random()
        return super().generate(model, prompts, generator)


@found_by(
    another_state_gives_other_responses="another seed gave the same 14 responses",
    parts_give_what_the_whole_gives="within the whole",
)
class AlwaysTheSameSeed(SideBySide):
    """A generator of its own, seeded with 0 at each call."""

    def uniform(self, count, generator):
        return super().uniform(count, torch.Generator().manual_seed(0))


@found_by(
    another_state_gives_other_responses="a generator that was used before gave the same 14 responses",
    parts_give_what_the_whole_gives="within the whole",
)
class BySeedAlone(SideBySide):
    """Looks at the generator's first seed, not at its state."""

    def uniform(self, count, generator):
        return super().uniform(count, torch.Generator().manual_seed(generator.initial_seed()))


@found_by(the_same_state_gives_the_same_responses="the second time response 0 was")
class CountsItsCalls(SideBySide):
    """Skips as many numbers as it was called before, so that no two calls are alike."""

    calls = 0
    draws_per_response = None

    def uniform(self, count, generator):
        self.__dict__["calls"] = self.calls + 1
        for _ in range(self.calls):
            torch.rand(3, generator=generator)
        return super().uniform(count, generator)


@found_by(
    copies_of_a_prompt_get_their_own_responses="side by side, are all",
    samples_follow_the_policy="of 1000 responses was",
)
class LooksPromptsUp(SideBySide):
    """Remembers the response to each prompt within a call."""

    draws_per_response = None

    def generate(self, model, prompts, generator):
        rollout = super().generate(model, prompts, generator)
        first = {}
        places = [first.setdefault(tuple(prompt), place) for place, prompt in enumerate(prompts)]
        return Rollout(
            prompts, *([values[i] for i in places] for values in (rollout.responses, rollout.logprobs, rollout.stops))
        )


@found_by(parts_give_what_the_whole_gives="within the whole")
class DrawsAtEachStep(SideBySide):
    """Promises draws for each response, and draws step by step for all of them."""

    def uniform(self, count, generator):
        return torch.rand(self.max_new_tokens, count, dtype=torch.float64, generator=generator).T


@found_by(parts_give_what_the_whole_gives="within the whole")
class DrawsFloat32(SideBySide):
    """Promises float64 numbers and takes float32."""

    def uniform(self, count, generator):
        return torch.rand(count, self.max_new_tokens, generator=generator).double()


@found_by(samples_from_the_model_as_it_is_now="after an update of the weights in place")
class CopiesTheHead(SideBySide):
    """Keeps a copy of each model's weights, which the next updates do not reach."""

    def generate(self, model, prompts, generator):
        kept = self.__dict__.setdefault("kept", {})
        kept.setdefault(id(model.model), {n: w.detach().clone() for n, w in model.model.named_parameters()})
        now = {n: w.detach().clone() for n, w in model.model.named_parameters()}
        fill(model, kept[id(model.model)])
        try:
            return super().generate(model, prompts, generator)
        finally:
            fill(model, now)


def fill(model, values):
    """Put values into a model's parameters."""
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            weight.copy_(values[name])


@found_by(samples_from_the_model_as_it_is_now="of a second model")
class KeepsTheFirstModel(SideBySide):
    """Samples from the first model that it was given."""

    def generate(self, model, prompts, generator):
        self.__dict__.setdefault("model", model)
        return super().generate(self.model, prompts, generator)


@found_by(positions_begin_with_the_prompt="of a model with learned positions")
class CountsThePadding(SideBySide):
    """Stock forward passes on a batch that is padded on the left, with positions from the padding on."""

    def distribution(self, model, tokens):
        longest = max(map(len, tokens))
        ids = torch.tensor([[1] * (longest - len(row)) + row for row in tokens])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in tokens])
        places = torch.arange(longest)[None]
        logits = model.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        return (logits[:, -1] / self.temperature).log_softmax(-1)


@found_by(reads_end_tokens_in_prompts="of prompts with the end token 0 in them")
class MasksThePadToken(SideBySide):
    """Leaves out of the prompt what is the tokenizer's pad token."""

    def read(self, model, prompt):
        return [token for token in prompt if token != model.tokenizer.pad_token_id] or list(prompt)


@found_by(dropout_is_off_while_it_samples="of a model in training mode")
class WithDropout(SideBySide):
    """Samples in the mode that the model is in."""

    def generate(self, model, prompts, generator):
        training = model.model.training
        with torch.no_grad():
            evaluating, model.evaluating = model.evaluating, torch.no_grad
            try:
                return super().generate(model, prompts, generator)
            finally:
                del model.evaluating
                assert evaluating and model.model.training == training


@found_by(the_mode_is_put_back="the model was in training mode")
class LeavesEvalMode(SideBySide):
    """Puts the model in eval mode."""

    def generate(self, model, prompts, generator):
        model.model.eval()
        return super().generate(model, prompts, generator)


@found_by(the_mode_is_put_back="the model was in eval mode")
class LeavesTrainingMode(SideBySide):
    """Puts the model in training mode afterwards."""

    def generate(self, model, prompts, generator):
        rollout = super().generate(model, prompts, generator)
        model.model.train()
        return rollout


@found_by(the_grad_mode_is_put_back="gradients were on before the call and are off")
class LeavesGradientsOff(SideBySide):
    """Turns gradients off for good."""

    def generate(self, model, prompts, generator):
        rollout = super().generate(model, prompts, generator)
        torch.set_grad_enabled(False)
        return rollout


@found_by(the_parameters_are_left_alone="has another value after the call")
class RoundsTheWeights(SideBySide):
    """Rounds the model's own weights to bfloat16, for speed."""

    def generate(self, model, prompts, generator):
        rollout = super().generate(model, prompts, generator)
        with torch.no_grad():
            for weight in model.model.parameters():
                weight.copy_(weight.bfloat16())
        return rollout


@found_by(the_parameters_are_left_alone="has another requires_grad after the call")
class Freezes(SideBySide):
    """Freezes the model."""

    def generate(self, model, prompts, generator):
        model.model.requires_grad_(False)
        return super().generate(model, prompts, generator)


@found_by(the_parameters_are_left_alone="has another gradient after the call")
class DropsGradients(SideBySide):
    """Throws away the gradients that were under way."""

    def generate(self, model, prompts, generator):
        model.model.zero_grad()
        return super().generate(model, prompts, generator)


@found_by(the_parameters_are_left_alone="the model's attention is 'sdpa' after the call")
class ChangesTheAttention(Changing):
    """Sets another attention, and leaves it."""

    def change(self, model, rollout):
        model.model.config._attn_implementation = "sdpa"
        return rollout


@found_by(
    tokens_are_of_the_vocabulary="of a vocabulary of 8",
    samples_follow_the_policy="the first word of 1000 responses was",
)
class AddsToTheTokens(Changing):
    """Counts pad tokens from another offset."""

    def change(self, model, rollout):
        return replace(rollout, responses=[[t + (t == 1) * 50 for t in r] for r in rollout.responses])
