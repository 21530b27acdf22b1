"""How much of a response was said before: counted by hand."""

import pytest
import torch

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.reward import Samples
from rlhf_core.errors import UserError
from rlhf_plugins.reward.repetition import Repetition


@pytest.mark.parametrize(
    ("size", "response", "share"),
    [
        (1, "good good good good", 3 / 4),
        (1, "Good old good new", 1 / 4),
        (2, "a b a b a", 2 / 4),  # ab ba ab ba
        (2, "good good good", 1 / 2),
        (1, "all of it new", 0.0),
        (3, "two words", 0.0),
        (1, "", 0.0),
    ],
)
def test_against_counts(size, response, share):
    rule = Repetition(size)
    rule.setup(None)
    scores = rule.score(Samples([Prompt(text="?")] * 2, [response, "x"]))
    assert scores.dtype == torch.float32 and scores.tolist() == pytest.approx([-share, 0.0])


def test_refusal():
    with pytest.raises(UserError, match=r"^reward size: got 0, expected at least 1$"):
        Repetition(0).setup(None)
