"""TRL's GRPO and RLOO trainers: the policy loss and its KL term, and the advantages of groups.

B rows, T slots each; R rows of responses, G to a group.
"""

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .stand_in import accelerator, frozen_model, metrics


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_low: float, clip_high: float,
    dual_clip: float | None = None, level: str = "token", kind: str = "clip", aggregate: str = "token",
    denominator: float | None = None,
) -> Tensor:  # fmt: skip
    """``GRPOTrainer._compute_loss``."""
    settings: dict[str, Any] = {"epsilon_low": clip_low, "epsilon_high": clip_high, "delta": dual_clip}
    if kind == "cispo":
        if clip_low < 1 or aggregate != "token":
            raise NotImplementedError("TRL's cispo has no lower bound, and a token mean alone")
        settings |= {"loss_type": "cispo", "epsilon_high": 1 + clip_high}
        denominator = float(mask.sum()) if denominator is None else denominator
    else:
        settings |= _aggregate(aggregate, denominator, len(mask))
    items = torch.tensor(0.0 if denominator is None else denominator)
    return _loss(logprobs, old_logprobs, advantages, mask, level=level, num_items_in_batch=items, **settings)


def _aggregate(aggregate: str, denominator: float | None, rows: int) -> dict[str, Any]:
    """Which of its loss types divides so."""
    if aggregate == "constant" and denominator is not None:
        return {"loss_type": "dr_grpo", "max_completion_length": denominator / rows}
    if aggregate == "sequence":
        steps = 1.0 if denominator is None else denominator / rows
        return {"loss_type": "grpo", "current_gradient_accumulation_steps": steps, "training": True}
    return {"loss_type": "bnpo" if denominator is None else "dapo"}


def kl(logprobs: Tensor, ref_logprobs: Tensor, kind: str) -> Tensor:
    """The loss of one token whose advantage is 0, with beta = 1."""
    if kind != "k3":
        raise NotImplementedError("k3 is all that GRPOTrainer has in its loss")
    one, nothing = torch.ones(1, 1, dtype=torch.bool), logprobs.new_zeros(1, 1)
    pairs = zip(logprobs.reshape(-1, 1, 1), ref_logprobs.reshape(-1, 1, 1), strict=True)
    losses = [_loss(new, new.detach(), nothing, one, loss_type="bnpo", beta=1.0, reference=ref) for new, ref in pairs]
    return torch.stack(losses).view_as(logprobs)


def _loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, level: str = "token",
    reference: Tensor | None = None, num_items_in_batch: Tensor | None = None, training: bool = False,
    delta: float | None = None, **settings: Any,
) -> Tensor:  # fmt: skip
    trainer = import_module("trl.trainer.grpo_trainer").GRPOTrainer
    no_tokens = torch.empty(len(mask), 0, dtype=torch.int64)
    inputs = {
        "prompt_ids": no_tokens, "prompt_mask": no_tokens, "completion_ids": no_tokens,
        "completion_mask": mask.long(), "advantages": advantages, "old_per_token_logps": old_logprobs,
        "ref_per_token_logps": reference, "num_items_in_batch": num_items_in_batch,
    }  # fmt: skip
    args = SimpleNamespace(use_bias_correction_kl=False, delta=delta, steps_per_generation=1)
    standing_in = {
        "accelerator": accelerator(), "args": args, "model": SimpleNamespace(training=training), "beta": 0.0,
        "epsilon_low": 0.2, "epsilon_high": 0.2, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "aux_loss_enabled": False, "use_vllm": False, "_entropy_bonus_enabled": False, "_metrics": metrics(),
        "current_gradient_accumulation_steps": 1, "importance_sampling_level": level,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(SimpleNamespace(**standing_in | settings), None, inputs)
    return loss


def group_advantages(scores: Tensor, group: int, kind: str = "grpo") -> Tensor:
    """``_generate_and_score_completions``: generation gives one token a response, the reward function the scores."""
    module, name = {"grpo": ("grpo_trainer", "GRPOTrainer"), "rloo": ("rloo_trainer", "RLOOTrainer")}[kind]
    trainer = getattr(import_module(f"trl.trainer.{module}"), name)
    import_module("accelerate").PartialState()  # what its gather_object asks for the number of processes
    rows, ids = len(scores), [[0]] * len(scores)
    texts = [""] * rows
    generated: tuple[Any, ...] = (ids, ids, texts) if kind == "rloo" else (ids, ids, None, texts, None, {}, None, None)
    logps = torch.zeros(rows, 1)
    args = SimpleNamespace(
        steps_per_generation=1, gradient_accumulation_steps=1, per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows, gradient_checkpointing_kwargs=None,
    )  # fmt: skip
    logs = SimpleNamespace(extend=lambda _: None)
    self = SimpleNamespace(
        accelerator=accelerator(), args=args, model=frozen_model(), environment_factories=None, environments=None,
        tools=None, pad_to_multiple_of=None, mask_truncated_completions=False, num_iterations=1, use_vllm=False,
        beta=0.0, num_generations=group, num_generations_eval=group, multi_objective_aggregation="sum_then_normalize",
        scale_rewards="group", normalize_advantages=False, reward_clip_range=None, reward_funcs=[None],
        reward_func_names=["score"], reward_weights=torch.ones(1, dtype=scores.dtype), log_multimodal=False,
        _tokenizer=SimpleNamespace(pad_token_id=0), _pending_extra_logs={}, _pending_metrics={}, _metrics=metrics(),
        _logs={"prompt": logs, "completion": logs, "rewards": {"score": logs}, "advantages": logs, "extra": {}},
        _generate=lambda prompts: generated, _calculate_rewards=lambda *_: scores[:, None],
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, None, None),
    )  # fmt: skip
    found: Tensor = trainer._generate_and_score_completions(self, [{"prompt": ""}] * rows)["advantages"]
    return found
