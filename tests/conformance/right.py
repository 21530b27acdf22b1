"""A plain implementation on padded tensors, as anybody might have one; ``wrong.py`` breaks it.

B rows, T slots each.
"""

import torch
import torch.nn.functional as F


class Right:
    def masked(self, mask, tensor):
        return torch.where(mask, tensor, 0.0)

    def gae(self, rewards, values, mask, gamma, lam, bootstrap=None, scores=None):
        rewards = self.place(self.masked(mask, rewards), mask, scores)
        values = self.masked(mask, values)
        advantages = torch.zeros_like(values)
        advantage, following = torch.zeros(len(values)), torch.zeros(len(values), dtype=values.dtype)
        if bootstrap is not None:
            following = bootstrap
        for t in reversed(range(values.shape[1])):
            here, value = mask[:, t], values[:, t]
            delta = rewards[:, t] + gamma * following - value
            advantages[:, t] = delta + gamma * lam * advantage
            advantage, following = self.carry(here, advantages[:, t], advantage, value, following)
        return advantages, advantages + values

    def place(self, rewards, mask, scores):
        if scores is None:
            return rewards
        last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
        return rewards + last * scores[:, None]

    def carry(self, here, new, advantage, value, following):
        return torch.where(here, new, advantage), torch.where(here, value, following)

    def whiten(self, values, mask, shift_mean=True):
        kept = values[mask]
        mean, var = kept.mean(), self.variance(kept)
        found = (values - mean) * (var + 1e-8).rsqrt()
        return found if shift_mean else found + mean

    def variance(self, kept):
        return kept.var(correction=0)

    def kl(self, logprobs, ref_logprobs, kind):
        d = logprobs - ref_logprobs
        return {"k1": d, "k2": d.square() / 2, "k3": torch.expm1(-d) + d}[kind]

    def policy_loss(
        self, logprobs, old_logprobs, advantages, mask, clip_low, clip_high, dual_clip=None, level="token",
        kind="clip", aggregate="token", denominator=None,
    ):  # fmt: skip
        logprobs, advantages = self.masked(mask, logprobs), self.masked(mask, advantages)
        log_ratio = logprobs - self.masked(mask, old_logprobs)
        if level == "sequence":
            log_ratio = self.sequence_ratio(log_ratio, mask)
        ratio = log_ratio.clamp(-20, 20).exp()
        if kind == "cispo":
            objective = self.cispo(ratio.clamp(1 - clip_low, 1 + clip_high), advantages, logprobs)
        else:
            objective = self.clip(ratio, advantages, 1 - clip_low, 1 + clip_high)
        if dual_clip is not None:
            objective = self.dual(objective, dual_clip, advantages)
        return -self.aggregate(self.masked(mask, objective), mask, aggregate, denominator)

    def sequence_ratio(self, log_ratio, mask):
        return (log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(log_ratio)

    def cispo(self, bounded, advantages, logprobs):
        return bounded.detach() * advantages * logprobs

    def clip(self, ratio, advantages, low, high):
        return torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)

    def dual(self, objective, c, advantages):
        return torch.where(advantages < 0, torch.maximum(objective, c * advantages), objective)

    def aggregate(self, terms, mask, how, denominator):
        if how == "sequence":
            rows = (mask.any(1)).sum().clamp(min=1) if denominator is None else denominator
            return (terms.sum(1) / mask.sum(1).clamp(min=1)).sum() / rows
        return terms.sum() / (mask.sum().clamp(min=1) if denominator is None else denominator)

    def value_loss(self, values, old_values, returns, mask, clip):
        values, old_values, returns = (self.masked(mask, x) for x in (values, old_values, returns))
        error = (values - returns).square()
        if clip is not None:
            error = self.worse(error, (self.clipped(values, old_values, returns, clip) - returns).square())
        return error.sum() / 2 / mask.sum().clamp(min=1)

    def clipped(self, values, old_values, returns, clip):
        return values.clamp(old_values - clip, old_values + clip)

    def worse(self, free, bound):
        return torch.maximum(free, bound)

    def ranking_loss(self, scores, ranks):
        losses = []
        for score, rank in zip(scores, ranks, strict=True):
            pairs = (rank[:, None] < rank).nonzero()
            if len(pairs):
                losses.append(self.pairs(score[pairs[:, 0]] - score[pairs[:, 1]]))
        return torch.stack(losses).mean() if losses else torch.cat(scores).sum() * 0

    def pairs(self, gap):
        return -F.logsigmoid(gap).mean()

    def preference_loss(
        self, chosen, rejected, chosen_mask, rejected_mask, beta, kind="dpo", ref_chosen=None, ref_rejected=None,
        label_smoothing=0.0, margin=0.0,
    ):  # fmt: skip
        sides = []
        for own, reference, mask in ((chosen, ref_chosen, chosen_mask), (rejected, ref_rejected, rejected_mask)):
            ratio = self.masked(mask, own if reference is None else own - reference)
            sides.append(self.of_response(ratio, mask, kind))
        return self.pair(*sides, beta, kind, label_smoothing, margin).mean()

    def of_response(self, ratio, mask, kind):
        return ratio.sum(1) / (mask.sum(1) if kind in ("ipo", "orpo", "simpo") else 1)

    def pair(self, c, r, beta, kind, smoothing, margin):
        h = beta * (c - r) - margin
        if kind == "hinge":
            return (1 - h).relu()
        if kind == "ipo":
            return (c - r - 1 / (2 * beta)).square()
        if kind == "orpo":
            odds = [x - torch.log(-torch.expm1(x)) for x in (c, r)]
            return -c - beta * F.logsigmoid(odds[0] - odds[1])
        return -(1 - smoothing) * F.logsigmoid(h) - smoothing * F.logsigmoid(-h)

    def group_advantages(self, scores, group, kind="grpo"):
        groups = scores.view(-1, group)
        centred = groups - groups.mean(1, keepdim=True)
        if kind == "rloo":
            return (centred * group / max(1, group - 1)).flatten()
        return (centred / (self.std(groups) + 1e-6)).flatten()

    def std(self, groups):
        return groups.std(1, keepdim=True, correction=0)

    def logprobs(self, logits, targets, temperature=1.0):
        found = self.log_softmax(logits / temperature).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return self.masked(targets != -100, found)

    def log_softmax(self, logits):
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


RIGHT = Right()
