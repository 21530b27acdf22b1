"""Mistakes that were made, one a class, and the checks that have to find each: these, and no others."""

import torch
import torch.nn.functional as F

from .right import Right

MISTAKES = {}


def found_by(*checks):
    """The class is wrong in what these checks are about."""

    def keep(cls):
        MISTAKES[cls] = set(checks)
        return cls

    return keep


@found_by("whiten.large_offset")
class DifferenceOfSquares(Right):
    def variance(self, kept):
        return kept.square().mean() - kept.mean().square()


@found_by("whiten.population", "whiten.shift_mean", "whiten.one_valid", "whiten.large_offset", "whiten.masked_nan")
class SampleVariance(Right):
    def variance(self, kept):
        return kept.var()


@found_by("whiten.shift_mean")
class MeanNotAddedAgain(Right):
    def whiten(self, values, mask, shift_mean=True):
        return super().whiten(values, mask)


@found_by("gae.score")
class ScoreOnTheLastSlot(Right):
    def place(self, rewards, mask, scores):
        if scores is None:
            return rewards
        return F.pad(rewards[:, :-1], (0, 1)) + F.pad(scores[:, None], (rewards.shape[1] - 1, 0))


@found_by("gae.gaps", "gae.gaps_discounted", "gae.masked_nan", "gae.score", "gae.bootstrap")
class ZeroInGaps(Right):
    def carry(self, here, new, advantage, value, following):
        return self.masked(here, new), self.masked(here, value)


@found_by("gae.gaps", "gae.gaps_discounted", "gae.masked_nan", "gae.score")
class GapsBelongToTheResponse(Right):
    def gae(self, rewards, values, mask, gamma, lam, bootstrap=None, scores=None):
        inside = mask.flip(1).cumsum(1).flip(1) > 0
        return super().gae(rewards, values, inside, gamma, lam, bootstrap, scores)


@found_by("gae.bootstrap")
class NoBootstrap(Right):
    def gae(self, rewards, values, mask, gamma, lam, bootstrap=None, scores=None):
        return super().gae(rewards, values, mask, gamma, lam, None, scores)


@found_by("kl.k3", "kl.k3_unbiased", "kl.k3_gradient")
class K3OfTheOtherSign(Right):
    def kl(self, logprobs, ref_logprobs, kind):
        return super().kl(*((ref_logprobs, logprobs) if kind == "k3" else (logprobs, ref_logprobs)), kind)


@found_by("policy_loss.clip_table", "policy_loss.clip_higher", "policy_loss.dual_clip",
          "policy_loss.dual_clip_positive", "policy_loss.log_ratio_clamp", "policy_loss.token_microbatches",
          "policy_loss.sequence_microbatches", "sequence_ratio.clip")  # fmt: skip
class ClippedOnTheOtherSide(Right):
    def clip(self, ratio, advantages, low, high):
        return torch.maximum(ratio * advantages, ratio.clamp(low, high) * advantages)


@found_by("policy_loss.clip_higher")
class OneBoundForBoth(Right):
    def clip(self, ratio, advantages, low, high):
        return super().clip(ratio, advantages, low, 2 - low)


@found_by("policy_loss.dual_clip_positive")
class DualClipOfEverything(Right):
    def dual(self, objective, c, advantages):
        return torch.maximum(objective, c * advantages)


@found_by("policy_loss.token_mean")
class MeanOfMeans(Right):
    def aggregate(self, terms, mask, how, denominator):
        return super().aggregate(terms, mask, "sequence" if denominator is None else how, denominator)


@found_by("policy_loss.token_microbatches", "policy_loss.sequence_microbatches", "policy_loss.constant")
class OwnDenominator(Right):
    def aggregate(self, terms, mask, how, denominator):
        return super().aggregate(terms, mask, how, None)


@found_by("policy_loss.empty_rows")
class EmptyRowsCount(Right):
    def aggregate(self, terms, mask, how, denominator):
        return super().aggregate(terms, mask, how, denominator or (len(mask) if how == "sequence" else None))


@found_by("policy_loss.masked_nan", "value_loss.masked_nan")
class MaskedByMultiplication(Right):
    def masked(self, mask, tensor):
        return mask * tensor


@found_by("sequence_ratio.mean", "sequence_ratio.clip", "sequence_ratio.gaps")
class SummedRatio(Right):
    def sequence_ratio(self, log_ratio, mask):
        return log_ratio.sum(1, keepdim=True).expand_as(log_ratio)


@found_by("sequence_ratio.mean", "sequence_ratio.gaps", "sequence_ratio.clip")
class GradientOfTheFirstTokenAlone(Right):
    def sequence_ratio(self, log_ratio, mask):
        mean, first = super().sequence_ratio(log_ratio, mask).detach(), log_ratio[:, :1]
        return mean + first - first.detach()


@found_by("sequence_ratio.mean", "sequence_ratio.gaps")
class MeanOverPadding(Right):
    def sequence_ratio(self, log_ratio, mask):
        return log_ratio.mean(1, keepdim=True).expand_as(log_ratio)


@found_by("cispo.gradient", "cispo.gradient_low", "cispo.surrogate")
class GradientThroughTheClip(Right):
    def cispo(self, bounded, advantages, logprobs):
        return bounded * advantages


@found_by("value_loss.table", "value_loss.about_old")
class SmallerValueError(Right):
    def worse(self, free, bound):
        return torch.minimum(free, bound)


@found_by("value_loss.table", "value_loss.about_old", "value_loss.masked", "value_loss.masked_nan")
class ClippedAboutReturns(Right):
    def clipped(self, values, old_values, returns, clip):
        return values.clamp(returns - clip, returns + clip)

    def worse(self, free, bound):
        return bound


@found_by("ranking_loss.large_scores")
class LogOfOnePlusExp(Right):
    def pairs(self, gap):
        return torch.log(1 + torch.exp(-gap)).mean()


@found_by("ranking_loss.k_wise", "ranking_loss.order")
class MeanOverAllPairs(Right):
    def ranking_loss(self, scores, ranks):
        losses = [super(MeanOverAllPairs, self).ranking_loss([s], [r]) for s, r in zip(scores, ranks, strict=True)]
        counts = [(rank[:, None] < rank).sum() for rank in ranks]
        return sum(x * n for x, n in zip(losses, counts, strict=True)) / max(1, sum(counts))


@found_by("ranking_loss.tied_prompt")
class TiedPromptsCount(Right):
    def ranking_loss(self, scores, ranks):
        untied = sum(len(rank.unique()) > 1 for rank in ranks)
        return super().ranking_loss(scores, ranks) * untied / len(ranks)


@found_by("preference_loss.dpo", "preference_loss.summed", "preference_loss.response_alone",
          "preference_loss.label_smoothing", "preference_loss.reference_free", "preference_loss.hinge")  # fmt: skip
class AveragedLogprobs(Right):
    def of_response(self, ratio, mask, kind):
        return ratio.sum(1) / mask.sum(1)


@found_by("preference_loss.dpo", "preference_loss.summed", "preference_loss.response_alone",
          "preference_loss.label_smoothing", "preference_loss.reference_free", "preference_loss.hinge")  # fmt: skip
class UnsummedLogprobs(Right):
    def of_response(self, ratio, mask, kind):
        return ratio if kind in ("dpo", "hinge") else super().of_response(ratio, mask, kind)


@found_by("preference_loss.ipo")
class SummedIPO(Right):
    def of_response(self, ratio, mask, kind):
        return ratio.sum(1) if kind == "ipo" else super().of_response(ratio, mask, kind)


@found_by("preference_loss.summed", "preference_loss.response_alone", "preference_loss.hinge")
class PromptCounted(Right):
    def preference_loss(self, chosen, rejected, chosen_mask, rejected_mask, beta, kind="dpo", **options):
        if kind in ("dpo", "hinge"):
            chosen_mask, rejected_mask = torch.ones_like(chosen_mask), torch.ones_like(rejected_mask)
        return super().preference_loss(chosen, rejected, chosen_mask, rejected_mask, beta, kind, **options)


@found_by("preference_loss.label_smoothing")
class SmoothingIgnored(Right):
    def pair(self, c, r, beta, kind, smoothing, margin):
        return super().pair(c, r, beta, kind, 0.0, margin)


@found_by("group_advantages.grpo", "group_advantages.one_response")
class SampleStd(Right):
    def std(self, groups):
        return groups.std(1, keepdim=True)


@found_by("group_advantages.grpo", "group_advantages.grpo_direction", "group_advantages.zero_variance",
          "group_advantages.one_response")  # fmt: skip
class NormalisedOverTheBatch(Right):
    def group_advantages(self, scores, group, kind="grpo"):
        return super().group_advantages(scores, len(scores) if kind == "grpo" else group, kind)


@found_by("group_advantages.rloo")
class OwnScoreInTheBaseline(Right):
    def group_advantages(self, scores, group, kind="grpo"):
        found = super().group_advantages(scores, group, kind)
        return found * (group - 1) / group if kind == "rloo" else found


@found_by("logprobs.temperature")
class TemperatureAfterTheSoftmax(Right):
    def logprobs(self, logits, targets, temperature=1.0):
        return super().logprobs(logits, targets) / temperature


@found_by("logprobs.bfloat16")
class SoftmaxInTheLogitsDtype(Right):
    def log_softmax(self, logits):
        return logits.log_softmax(-1)


@found_by("logprobs.large_logits")
class LogSumExpTakenAway(Right):
    def log_softmax(self, logits):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits - logits.logsumexp(-1, keepdim=True)
