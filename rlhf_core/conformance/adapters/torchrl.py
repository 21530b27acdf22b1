"""torchrl: its GAE functions, and its loss modules with stand-ins for actor and critic; made for torchrl 0.14.

B rows, T slots each, V vocabulary; R responses, G to a group. torchrl has a feature dimension at the end.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..signatures import Implementation
from .torchrl_gae import estimator

VARIANTS = ("torchrl", "torchrl.vec")
"""The second has its vectorised GAE, and nothing else."""

ALMOST_ONE = 1 - 1e-6
"""It refuses a clip_low of 1, which is no lower bound."""

GAE = "objectives.value.functional.{}generalized_advantage_estimate; done at a row's last valid token"
CALLS = {
    "gae": GAE.format(""),
    "whiten": "objectives.PPOLoss._standardize_advantage, the mask being shifted_valid",
    "kl": "objectives.llm.GRPOLoss._kl_to_ref, a token a call; k3 is all it has",
    "policy_loss": "objectives.llm.GRPOLoss, CISPOLoss; aggregation token_mean or prompt_mean, masking_strategy sft",
    "value_loss": "objectives.ClipPPOLoss; loss_critic_type=l2, critic_coeff=0.5, clip_value; mask is shifted_valid",
    "group_advantages": "objectives.llm.MCAdvantage(trajectory_return=sum), one step a trajectory",
    "logprobs": "modules.llm.policies LLMMaskedCategorical.log_prob",
}


def implementation(variant: str) -> Implementation:
    """One column.

    Raises:
        NotImplementedError: it is not installed.
    """
    try:
        found = version("torchrl")
    except PackageNotFoundError:
        raise NotImplementedError("not installed (pip install torchrl)") from None
    if variant == "torchrl.vec":
        return Implementation(variant, {"gae": estimator("vec_")}, found, {"gae": GAE.format("vec_")})
    functions: dict[str, Callable[..., Any]] = {
        "gae": estimator(""),
        "whiten": whiten,
        "kl": kl,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "group_advantages": group_advantages,
        "logprobs": logprobs,
    }
    return Implementation(variant, functions, found, CALLS)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """What its PPO losses do with normalize_advantage."""
    if not shift_mean:
        raise NotImplementedError("torchrl always takes the mean away")
    loss, data = import_module("torchrl.objectives").PPOLoss, import_module("tensordict")
    self = SimpleNamespace(normalize_advantage_exclude_dims=())
    valid = data.TensorDict({"shifted_valid": mask}, batch_size=mask.shape)
    found: Tensor = loss._standardize_advantage(self, values, valid)
    return found


def kl(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """The KL term of one token."""
    if kind != "k3":
        raise NotImplementedError("k3 is all that GRPOLoss has")
    loss = import_module("torchrl.objectives.llm").GRPOLoss
    pairs = zip(logprobs.reshape(-1, 1), ref_logprobs.reshape(-1, 1), strict=True)
    terms = [loss._kl_to_ref(None, {"_cur_log_prob": new}, ref_log_prob=ref, coeff=1.0)[0] for new, ref in pairs]
    return torch.stack(terms).view_as(logprobs)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float,
    dual_clip: float | None = None, level: str = "token", kind: str = "clip", aggregate: str = "token",
    denominator: float | None = None,
) -> Tensor:  # fmt: skip
    """``forward`` of its losses for language models; the actor is a stand-in that gives the log-probs."""
    aggregations = {"token": "token_mean", "sequence": "prompt_mean"}
    if dual_clip is not None or level != "token" or denominator is not None or aggregate not in aggregations:
        raise NotImplementedError("GRPOLoss has neither dual clip, sequence ratios nor a given denominator")
    llm, data = import_module("torchrl.objectives.llm"), import_module("tensordict")
    actor = _Actor(SimpleNamespace(mask=mask, log_prob=lambda _: logprobs))
    clip = (min(clip_low, ALMOST_ONE), clip_high)
    make = llm.CISPOLoss if kind == "cispo" else llm.GRPOLoss
    loss = make(actor, clip_epsilon=clip, aggregation=aggregations[aggregate], entropy_bonus=False)
    batch = data.TensorDict(
        {
            "advantage": advantages[..., None],
            ("tokens", "full"): torch.zeros_like(mask, dtype=torch.int64),
            ("log_probs", "full"): old_logprobs,
        },
        batch_size=[len(mask)],
    )
    found: Tensor = loss(batch).loss_objective
    return found.sum()  # one number, in a dimension of its own


class _Actor(nn.Module):
    """Has a distribution to give."""

    in_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, distribution: SimpleNamespace) -> None:
        super().__init__()
        self.distribution = distribution

    def get_dist(self, _: Any, **__: Any) -> SimpleNamespace:
        return self.distribution


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """The critic's part of ``ClipPPOLoss.forward``; the critic is a stand-in that gives the values."""
    objectives, data = import_module("torchrl.objectives"), import_module("tensordict")
    nothing = torch.zeros_like(values).detach()
    loss = objectives.ClipPPOLoss(
        _Actor(SimpleNamespace(log_prob=lambda _: nothing)), _Critic(values[..., None]), functional=False,
        entropy_bonus=False, loss_critic_type="l2", critic_coeff=0.5, clip_value=clip,
    )  # fmt: skip
    batch = data.TensorDict(
        {
            "advantage": nothing[..., None],
            "value_target": returns[..., None],
            "state_value": old_values[..., None],
            "action": nothing,
            loss.tensor_keys.sample_log_prob: nothing,
            "shifted_valid": mask[..., None],
        },
        batch_size=mask.shape,
    )
    found: Tensor = loss(batch)["loss_critic"]
    return found


class _Critic(nn.Module):
    """Has values to give."""

    in_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, _: Any) -> dict[str, Tensor]:
        return {"state_value": self.values}


def group_advantages(scores: Tensor, group: int, kind: str = "grpo") -> Tensor:
    """What its replay buffer's transform writes, a group of trajectories of one step after another."""
    if kind != "grpo" or group < 2:
        raise NotImplementedError("MCAdvantage has neither leave-one-out nor groups of one")
    llm, data = import_module("torchrl.objectives.llm"), import_module("tensordict")
    transform = llm.MCAdvantage(grpo_size=group, prompt_key="group", trajectory_return="sum")
    found = []
    for response, score in enumerate(scores):
        step = {"reward": score.view(1, 1), "done": torch.ones(1, 1, dtype=torch.bool)}
        following = data.TensorDict(step, batch_size=[1])
        prompt = torch.tensor([response // group])
        written = transform.inv(data.TensorDict({"group": prompt, "next": following}, batch_size=[1]))
        found += [] if written is None else [written["advantage"].flatten()]
    return torch.cat(found)


def logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Of its distribution over tokens."""
    if temperature != 1:
        raise NotImplementedError("LLMMaskedCategorical has no temperature")
    distributions = import_module("torchrl.modules.distributions")
    found: Tensor = distributions.LLMMaskedCategorical(logits=logits, mask=targets != -100).log_prob(targets)
    return found
