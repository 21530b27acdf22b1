"""The lexicon rule on sentences whose scores its own documentation and papers print."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.reward import Reward, Samples
from rlhf_plugins.reward.sentiment import Sentiment

# The README of vaderSentiment.
DOCUMENTED = {
    "VADER is smart, handsome, and funny.": 0.8316,
    "VADER is smart, handsome, and funny!": 0.8439,
    "VADER is VERY SMART, handsome, and FUNNY!!!": 0.9342,
    "The book was good.": 0.4404,
    "Today SUX!": -0.5461,
    "Not bad at all": 0.4310,
}


def samples(*responses: str, prompt: str = "A terrible, awful day.") -> Samples:
    count = len(responses)
    return Samples([Prompt(text=prompt)] * count, responses, [[]] * count, [[]] * count, ["eos"] * count)


@pytest.fixture(scope="module")
def sentiment():
    reward = Sentiment()
    reward.setup(run=None)
    assert isinstance(reward, Reward)
    return reward


def test_documented_scores(sentiment):
    scores = sentiment.score(samples(*DOCUMENTED))
    assert scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(list(DOCUMENTED.values()), abs=1e-6)


def test_the_response_alone_is_read(sentiment):
    assert sentiment.score(samples("", "the table is made of wood")).tolist() == [0.0, 0.0]
    assert sentiment.score(samples()).shape == (0,)


def test_scale():
    reward = Sentiment(scale=-5)
    reward.setup(run=None)
    assert reward.score(samples("The book was good.")).item() == pytest.approx(-5 * 0.4404)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(max_size=40) | st.sampled_from(["least", "no", "never so", "without doubt", "!!!?"])))
def test_any_text_has_a_score_within_bounds_of_its_own(sentiment, texts):
    scores = sentiment.score(samples(*texts))
    assert scores.shape == (len(texts),)
    assert bool((scores.abs() <= 1).all())
    assert torch.equal(scores, sentiment.score(samples(*texts[::-1])).flip(0))
