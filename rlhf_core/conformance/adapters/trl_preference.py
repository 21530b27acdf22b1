"""TRL's DPO trainer, and its experimental ORPO and CPO trainers (the latter has SimPO).

B pairs, T slots a response. The model is a stand-in that gives the log-probs: a vocabulary of two tokens, of which the
response is token 0; one token of a prompt is in front, for the trainers shift labels.
"""

import os
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .stand_in import accelerator, frozen_model, metrics

LOSS_TYPES = {"dpo": "sigmoid", "hinge": "hinge", "ipo": "ipo"}


def preference_loss(
    chosen: Tensor, rejected: Tensor, chosen_mask: Tensor, rejected_mask: Tensor, beta: float, kind: str = "dpo",
    ref_chosen: Tensor | None = None, ref_rejected: Tensor | None = None, label_smoothing: float = 0.0,
    margin: float = 0.0,
) -> Tensor:  # fmt: skip
    """Whichever trainer has it."""
    if label_smoothing:
        raise NotImplementedError("DPOTrainer ignores label_smoothing with loss_type=sigmoid; robust is another loss")
    policy, mask = torch.cat([chosen, rejected]), torch.cat([chosen_mask, rejected_mask])
    if kind == "orpo":
        return _experimental("orpo", "ORPOTrainer", policy, mask, beta=beta)
    if kind == "simpo":
        simpo = {"loss_type": "simpo", "simpo_gamma": margin, "alpha": 0.0, "cpo_alpha": 0.0, "label_smoothing": 0.0}
        return _experimental("cpo", "CPOTrainer", policy, mask, beta=beta, **simpo)
    if ref_chosen is None or ref_rejected is None:
        raise NotImplementedError("DPOTrainer has no reference-free loss")
    return _dpo(policy, torch.cat([ref_chosen, ref_rejected]), mask, beta, LOSS_TYPES[kind])


def _dpo(policy: Tensor, reference: Tensor, mask: Tensor, beta: float, loss_type: str) -> Tensor:
    trainer = import_module("trl.trainer.dpo_trainer").DPOTrainer

    def model(logprobs: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        found = torch.where(labels[:, 1:] == -100, 0.0, logprobs)  # as its fused head does with labels of −100
        nothing = torch.zeros_like(found)
        return SimpleNamespace(log_probs=found, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    self = SimpleNamespace(
        model=frozen_model(), ref_model=partial(model, reference),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None), accelerator=accelerator(), _metrics=metrics(),
        _total_train_tokens=0, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False,
        f_divergence_type="reverse_kl", loss_types=[loss_type], loss_weights=[1.0], beta=beta, label_smoothing=0.0,
        use_weighting=False,
    )  # fmt: skip
    completion_mask = _behind_a_prompt(mask.long(), 0)
    inputs = {
        "input_ids": torch.zeros_like(completion_mask), "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(self, partial(model, policy), inputs, False)
    return loss


def _experimental(module: str, name: str, policy: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = getattr(import_module(f"trl.experimental.{module}"), name)
    logits = torch.stack([policy, torch.log(-torch.expm1(policy))], -1)  # softmax of these is (p, 1 − p)
    ends = torch.zeros_like(logits[:, :1])
    self = SimpleNamespace(
        accelerator=accelerator(), is_encoder_decoder=False, aux_loss_enabled=False, padding_value=0, pad_token_id=0,
        **settings,
    )  # fmt: skip
    for method in ("concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(trainer, method):
            setattr(self, method, partial(getattr(trainer, method), self))
    self.concatenated_inputs, self.get_batch_logps = trainer.concatenated_inputs, trainer.get_batch_logps
    batch: dict[str, Tensor] = {}
    for side, kept in zip(("chosen", "rejected"), mask.chunk(2), strict=True):
        attention = _behind_a_prompt(kept.long(), 1)
        batch |= {
            f"{side}_input_ids": torch.zeros_like(attention), f"{side}_attention_mask": attention,
            f"{side}_labels": _behind_a_prompt(torch.where(kept, 0, -100), -100),
        }  # fmt: skip

    def model(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.cat([logits, ends], 1))

    loss: Tensor = trainer.get_batch_loss_metrics(self, model, batch)[0]
    return loss


def _behind_a_prompt(rows: Tensor, first: int) -> Tensor:
    """``[B,T+1]``: a slot in front."""
    return torch.nn.functional.pad(rows, (1, 0), value=first)
