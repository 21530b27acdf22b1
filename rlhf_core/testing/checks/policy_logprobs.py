"""A policy's log-probs: of a distribution, of each sequence by itself, of what came before.

V vocabulary.
"""

from math import log

import torch

from ...batch import Packed
from ...contracts.policy import Policy
from ...language_model import hidden_states
from ..check import Checks, fail, fail_if
from ..world import World
from .policy_models import (
    allowed,
    answers,
    every_word,
    following_words,
    gap,
    made,
    packed,
    padded,
    sequences,
    unlike,
    vocabulary,
)

CHECKS = check = Checks()


@check(
    "logprobs gives one finite float32 number of at most 0 for each token, and 0 where nothing is predicted",
    why="they are added, subtracted and masked by place, over all tokens of a row",
    cure="return log_softmax(logits / temperature) of each token at its own place (rlhf_core.batch.following), else 0",
)
def gives_one_logprob_a_token(policy: Policy, world: World) -> None:
    """Of whole sequences, and of responses to prompts."""
    model = made(policy, world)
    for row in (packed(model, sequences(model)), Packed.answers(*answers(model), model.device)):
        with torch.no_grad():
            found = model.logprobs(row)
        fail_if(
            tuple(found.shape) != tuple(row.tokens.shape) or found.dtype != torch.float32,
            came=f"{len(row.tokens)} tokens gave shape {list(found.shape)} of {found.dtype}",
        )
        predicted = row.positions > 0 if row.predicted is None else row.predicted
        for place, (value, asked) in enumerate(zip(found.tolist(), predicted.tolist(), strict=True)):
            fail_if(not asked and value != 0, came=f"token {place} is not predicted and has {value:.4g}")
            fail_if(not -float("inf") < value <= 1e-6, came=f"token {place} has {value:.4g}")
        fail_if(not found.any(), came="all are 0")


@check(
    "the probabilities of all words at one place sum to 1",
    why="policy gradients, KL and entropy are of a distribution; of anything else they mean nothing",
    cure="normalise over the whole vocabulary: log_softmax over all rows of the head, of logits / temperature",
)
def probabilities_sum_to_one(policy: Policy, world: World) -> None:
    """At temperatures 1 and 0.7."""
    model = made(policy, world)
    prefix = sequences(model)[3]
    for temperature in (1.0, 0.7):
        total = float(every_word(model, prefix, temperature).double().exp().sum())
        fail_if(
            not abs(total - 1) < 10 * allowed(model.model),
            came=f"{vocabulary(model)} words have {total:.6g} together at temperature {temperature:g}",
        )


@check(
    "at temperature T the log-probs are those of logits / T",
    why="the same temperature samples and trains; where only one of them has it, the ratio of both is not 1",
    cure="pass the temperature on, to LanguageModel.logprobs or into log_softmax(logits / temperature)",
)
def the_temperature_is_applied(policy: Policy, world: World) -> None:
    """By differences between words, which are T times as large at 1."""
    model = made(policy, world)
    prefix, others = sequences(model)[0], sequences(model, 4, (6,))[0]
    row = packed(model, [[*prefix, word] for word in others])
    last = row.cu_seqlens[1:].long() - 1
    with torch.no_grad():
        one, two, half = (model.logprobs(row, temperature)[last].cpu() for temperature in (1.0, 2.0, 0.5))
    for temperature, found in ((2.0, two), (0.5, half)):
        expected, came = (one - one[0]) / temperature, found - found[0]
        word = int((expected - came).abs().argmax())
        fail_if(
            gap(expected, came) > 2 * allowed(model.model),
            came=f"words {others[word]} and {others[0]} are {float(one[word] - one[0]):.4f} nats apart at temperature "
            f"1 and {float(came[word]):.4f} at {temperature:g}, where {float(expected[word]):.4f} were expected",
        )


@check(
    "log-probs are the same for a sequence in a packed row and alone",
    why="which sequences share a row changes with every microbatch; they may not see each other",
    cure="keep cu_seqlens and positions of each sequence (LanguageModel does it): no attention across, places from 0",
)
def packed_equals_apart(policy: Policy, world: World) -> None:
    """In one order and in the other."""
    model = made(policy, world)
    found = sequences(model)
    with torch.no_grad():
        apart = [model.logprobs(packed(model, [tokens])) for tokens in found]
        row, turned = packed(model, found), packed(model, found[::-1])
        together, backwards = row.split(model.logprobs(row)), turned.split(model.logprobs(turned))[::-1]
    for name, other in (("in a row with others", together), ("in the reverse order", backwards)):
        if told := unlike(apart, other, allowed(model.model)):
            fail(came=f"{told}, first alone, then {name}")


@check(
    "log-probs are the same where neighbours share their prompt and where each sequence has its own",
    why="groups of responses to one prompt are computed with the prompt once, and sampled one by one",
    cure="leave Packed.folded to LanguageModel, or compute every prompt anew; the result has to be the same",
)
def shared_prompts_equal_apart(policy: Policy, world: World) -> None:
    """Three neighbours with one prompt, one of their own, and the first prompt again."""
    model = made(policy, world)
    prompts, responses = answers(model)
    row = Packed.answers(prompts, responses, model.device)
    with torch.no_grad():
        shared = row.split(model.logprobs(row))
        apart = [
            model.logprobs(packed(model, [[*prompt, *response]]))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
    cut = [values[len(prompt) :] for values, prompt in zip(shared, prompts, strict=True)]
    own = [values[len(prompt) :] for values, prompt in zip(apart, prompts, strict=True)]
    if told := unlike(own, cut, allowed(model.model)):
        fail(came=f"{told}, first alone, then behind a shared prompt")


@check(
    "log-probs are those of the stock forward on a padded batch",
    why="other engines, evaluations and the saved checkpoint compute that; what differs is another model there",
    cure="let log-probs be the model's own: whatever changes logits has to be in its forward, and in its checkpoint",
)
def packed_equals_padded(policy: Policy, world: World) -> None:
    """Padded on the left and on the right, with an attention mask."""
    model = made(policy, world)
    found = sequences(model)
    with torch.no_grad():
        ours = [model.logprobs(packed(model, [tokens])).cpu() for tokens in found]
    for side in ("right", "left"):
        stock = following_words(padded(model.model, found, side, model.end), found)
        if told := unlike(ours, stock, allowed(model.model)):
            fail(came=f"{told}, first by logprobs, then by the stock forward, padded on the {side}")


@check(
    "the log-prob of a token does not depend on what comes after it",
    why="a policy that reads ahead has log-probs near 0 in training and cannot sample so",
    cure="keep the attention causal: no mask that lets a token see a later one",
)
def later_tokens_do_not_matter(policy: Policy, world: World) -> None:
    """The last three tokens are others."""
    model = made(policy, world)
    tokens, others = sequences(model, 0, (9, 9))
    changed = [*tokens[:6], *others[6:]]
    if changed == tokens:
        changed[-1] = others[0]
    with torch.no_grad():
        before, after = (model.logprobs(packed(model, [row]))[:6] for row in (tokens, changed))
    if told := unlike([before], [after], allowed(model.model)):
        fail(came=f"{told}, first as it was, then with other tokens from place 6 on")


@check(
    "next_token gives the distribution that logprobs speaks of",
    why="rollouts sample by next_token, training goes by logprobs: where they differ every ratio is wrong",
    cure="override both or neither; what changes logits belongs into the model itself",
)
def next_token_agrees_with_logprobs(policy: Policy, world: World) -> None:
    """At temperatures 1 and 0.7."""
    model = made(policy, world)
    found = sequences(model)[2:3]
    row = packed(model, found)
    for temperature in (1.0, 0.7):
        with torch.no_grad():
            trained = [model.logprobs(row, temperature).cpu()]
            full = model.next_token(temperature)(hidden_states(model.model, row))
        sampled = following_words([full.cpu()], found)
        if told := unlike(trained, sampled, allowed(model.model)):
            fail(came=f"{told} at temperature {temperature:g}, first by logprobs, then by next_token")


@check(
    "sampler draws each word as often as next_token says, and tells its log-prob",
    why="samples of another distribution than the recorded one bias every gradient",
    cure="override sampler and next_token together; draw by the inverse of the distribution function",
)
def sampler_agrees_with_next_token(policy: Policy, world: World) -> None:
    """By 500 evenly spaced numbers, of which each word gets its share."""
    model, count = made(policy, world), 500
    row = packed(model, [sequences(model)[2]])
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    with model.decoding() as dtype:
        state = hidden_states(model.model, row)[-1:]
        full = model.next_token(0.7, dtype)(state)[0].cpu()
        words, logprobs = model.sampler(0.7, dtype)(state.expand(count, -1).contiguous(), uniform)
    words, logprobs = words.cpu(), logprobs.cpu()
    drawn = torch.bincount(words, minlength=len(full))
    word = int((drawn - count * full.exp()).abs().argmax())
    fail_if(
        abs(float(drawn[word] - count * full[word].exp())) > 2 + count * allowed(model.model),
        came=f"word {word} was drawn {int(drawn[word])} times of {count}, "
        f"{count * float(full[word].exp()):.1f} were expected",
    )
    worst = int((logprobs - full[words]).abs().argmax())
    fail_if(
        gap(logprobs, full[words]) > allowed(model.model),
        came=f"word {int(words[worst])} was drawn with log-prob {float(logprobs[worst]):.4f}, next_token says "
        f"{float(full[words[worst]]):.4f}",
    )


@check(
    "logprobs_and_entropy gives the same log-probs, and the entropy −Σ p log p of what each token was drawn from",
    why="the entropy is a bonus in the loss, and what people watch to see a policy collapse",
    cure="compute it from the same softmax(logits / temperature), in nats, over the whole vocabulary; 0 elsewhere",
)
def entropy_is_that_of_the_distribution(policy: Policy, world: World) -> None:
    """At temperatures 1 and 0.7, after one prefix; between 0 and log V everywhere."""
    model = made(policy, world)
    prefix = sequences(model)[3]
    row, most = packed(model, [[*prefix, prefix[0]]]), log(vocabulary(model))
    for temperature in (1.0, 0.7):
        with torch.no_grad():
            logprobs, entropy = model.logprobs_and_entropy(row, temperature)
            alone = model.logprobs(row, temperature)
        if told := unlike(row.split(alone), row.split(logprobs), allowed(model.model)):
            fail(came=f"{told}, first by logprobs, then by logprobs_and_entropy")
        fail_if(tuple(entropy.shape) != tuple(row.tokens.shape), came=f"entropies of shape {list(entropy.shape)}")
        words = every_word(model, prefix, temperature).log_softmax(-1)
        expected = float(-(words.exp() * words).sum())
        came = float(entropy[-1])
        fail_if(
            not abs(came - expected) < 10 * allowed(model.model),
            came=f"at temperature {temperature:g} it is {came:.4f} where −Σ p log p is {expected:.4f} nats",
        )
        odd = [value for value in entropy.tolist() if not -1e-3 <= value <= most + 1e-3]
        fail_if(bool(odd), came=f"{odd[0] if odd else 0:.4g} nats is not between 0 and log V = {most:.4g}")
        first = entropy[row.positions == 0]
        fail_if(
            bool(first.any()), came=f"a first token, which is not predicted, has {float(first.abs().max()):.4g} nats"
        )


@check(
    "two calls in eval mode give the same log-probs",
    why="old and new log-probs are of one network only then: dropout makes a ratio of what did not change",
    cure="draw nothing in eval mode; let dropout be nn.Dropout, or ask self.training",
)
def eval_mode_is_deterministic(policy: Policy, world: World) -> None:
    """And under ``evaluating``, whatever mode the model is in."""
    model = made(policy, world)
    row = packed(model, sequences(model))
    with torch.no_grad():
        first, second = model.logprobs(row), model.logprobs(row)
    fail_if(gap(first, second) > 1e-6, came=f"they differ by {gap(first, second):.4g}")
    model.model.train()
    with model.evaluating():
        third = model.logprobs(row)
    fail_if(gap(first, third) > 1e-6, came=f"they differ by {gap(first, third):.4g} from those under evaluating()")
    fail_if(not model.model.training, came="evaluating() left the model in eval mode")
