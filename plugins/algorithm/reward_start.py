"""What a reward model starts from, and the demonstrations at which its scores have their zero."""

import copy
import logging
from typing import Any

from transformers import AutoModelForSequenceClassification

from rlhf_core.contracts.data import Data, Demonstration
from rlhf_core.contracts.policy import Policy
from rlhf_core.errors import UserError
from rlhf_core.packing import spaced
from rlhf_core.scalar_model import ScalarModel

log = logging.getLogger("rlhf")


def started(policy: Policy, from_scratch: bool) -> ScalarModel:
    """The policy's checkpoint with one number a token; ``from_scratch``: its architecture with new random weights."""
    model = policy.scalar_model()
    if not from_scratch:
        return model
    if hasattr(model.model, "get_base_model"):
        raise UserError("algorithm.from_scratch: true, but adapters would leave random weights; policy.lora.rank=0")
    config: Any = copy.deepcopy(model.model.config)
    fresh = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return ScalarModel(fresh, model.tokenizer)


def demonstrations_or_none(data: Data, count: int) -> list[Demonstration]:
    """Demonstrations of the whole split, by which the bias is set; none where the data have none."""
    try:
        return spaced(data.demonstrations("train"), count)
    except UserError as error:
        log.warning("the reward model's bias stays 0: %s", error)
        return []
