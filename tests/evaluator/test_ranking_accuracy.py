"""Agreement with raters against a count over all pairs, and the human ceiling beside it."""

from itertools import combinations
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch

from rlhf_core.contracts.data import Message, Prompt, Ranking
from rlhf_core.contracts.evaluator import Subject
from rlhf_core.errors import UserError
from rlhf_plugins.evaluator.ranking_accuracy import RankingAccuracy, one_against_the_rest

PROMPT = Prompt(messages=(Message("user", "?"),))
RATED = [
    Ranking(PROMPT, ("a", "bb", "ccc"), (2, 1, 0), ((-1.0, 0.0, -2.0), (0.0, 1.0, 0.5), (3.0, 1.0, 2.0))),
    Ranking(PROMPT, ("dddd", "e"), (0, 1), ((1.0, 2.0, 0.0), (0.5, 0.5, 1.0))),  # means 1 and 2/3: nearer than 0.5
    Ranking(PROMPT, ("ff", "gg", "h", "iiiii"), (0, 0, 1, 2), ((2, 2, 1), (2, 2, 1), (1, 1, 0), (0, -3, 0))),
]
PLAIN = [Ranking(PROMPT, ("x", "yy", "zzz"), (1, 0, 1)), Ranking(PROMPT, ("u", "vv"), (0, 0))]


class Scores:
    """A reward that knows each response's score."""

    def __init__(self, scores):
        self.scores = scores

    def setup(self, run):
        pass

    def score(self, samples):
        return torch.tensor([self.scores[response] for response in samples.responses])


SCORES = Scores({"a": 0.0, "bb": 1.0, "ccc": 1.0, "dddd": 5.0, "e": 6.0, "ff": 1.0, "gg": 0.0, "h": 1.0, "iiiii": -1.0,
                 "x": 0.0, "yy": 1.0, "zzz": 2.0, "u": 0.0, "vv": 1.0})  # fmt: skip


def evaluator(rankings, **options):
    made = RankingAccuracy(**options)
    made.setup(SimpleNamespace(data=SimpleNamespace(rankings=lambda split: rankings)))
    return made


def brute_force(rankings, score, gap):
    """The share of pairs that ``score`` orders as the means of their ratings (or their ranks) do; a tie is one half."""
    won = []
    for row in rankings:
        for i, j in combinations(range(len(row.responses)), 2):
            if row.ratings:
                means = sum(row.ratings[i]) / len(row.ratings[i]), sum(row.ratings[j]) / len(row.ratings[j])
            else:
                means = -row.ranks[i], -row.ranks[j]
            if means[0] == means[1] or (row.ratings and abs(means[0] - means[1]) < gap):
                continue
            better, worse = (i, j) if means[0] > means[1] else (j, i)
            one, other = score(row.responses[better]), score(row.responses[worse])
            won.append(1.0 if one > other else 0.5 if one == other else 0.0)
    return fmean(won), len(won)


def test_accuracy_is_the_share_of_pairs_in_the_raters_order():
    opposite = Scores({response: -score for response, score in SCORES.scores.items()})
    found = evaluator(RATED, baselines={"other": opposite}).evaluate(Subject(scorer=SCORES))
    expected, count = brute_force(RATED, SCORES.scores.get, 0.5)
    assert (found["accuracy"], found["pairs"]) == (pytest.approx(expected), count)
    assert found["accuracy_all"] == pytest.approx(brute_force(RATED, SCORES.scores.get, 0.0)[0])
    assert found["accuracy_all"] != found["accuracy"]
    assert found["length"] == pytest.approx(brute_force(RATED, len, 0.5)[0])
    assert found["other"] == pytest.approx(brute_force(RATED, lambda r: -SCORES.scores[r], 0.5)[0])
    assert found["chance"] == 0.5


def test_rankings_without_ratings_count_where_ranks_differ():
    found = evaluator(PLAIN, baselines={}).evaluate(Subject(scorer=SCORES))
    assert found["pairs"] == 2  # yy before x and zzz; u and vv are tied
    assert found["accuracy"] == found["accuracy_all"] == 0.5
    assert "human" not in found


def test_a_scorer_that_says_nothing_is_at_one_half():
    nothing = Scores(dict.fromkeys(SCORES.scores, 7.0))
    found = evaluator(RATED).evaluate(Subject(scorer=nothing))
    assert (found["accuracy"], found["accuracy_low"], found["accuracy_high"]) == (0.5, 0.5, 0.5)


def test_the_interval_takes_rankings_for_units():
    """By hand: two rankings with 3 and 5 pairs, of which 2.5 and 5 are won."""
    found = evaluator(RATED).evaluate(Subject(scorer=SCORES))
    wins = {0: [1.0, 1.0, 0.5], 2: [0.5, 0.0, 1.0, 1.0, 1.0]}
    rate = fmean([win for row in wins.values() for win in row])
    assert found["accuracy"] == pytest.approx(rate)
    error = sum((sum(row) - len(row) * rate) ** 2 for row in wins.values()) ** 0.5 / 8
    assert found["accuracy_low"] == pytest.approx(rate - 1.96 * error)
    assert found["accuracy_high"] == pytest.approx(rate + 1.96 * error)


def test_the_human_ceiling_is_one_rater_against_the_rest():
    found = evaluator(RATED).evaluate(Subject(scorer=SCORES))
    shares = []
    for row in RATED:
        for i, j in combinations(range(len(row.responses)), 2):
            if abs(fmean(row.ratings[i]) - fmean(row.ratings[j])) < 0.5:
                continue
            agreed = []
            for rater in range(3):
                rest = [fmean(r for k, r in enumerate(row.ratings[place]) if k != rater) for place in (i, j)]
                own = row.ratings[i][rater], row.ratings[j][rater]
                if rest[0] == rest[1]:
                    continue
                if own[0] == own[1]:
                    agreed.append(0.5)
                else:
                    agreed.append(float((own[0] > own[1]) == (rest[0] > rest[1])))
            shares.append(fmean(agreed) if agreed else 0.5)
    assert found["human"] == pytest.approx(fmean(shares))
    assert 0.5 < found["human"] < 1


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ((1.0, 1.0), (0.0, 0.0), 1.0),
        ((1.0, 0.0), (0.0, 1.0), 0.0),  # each rater alone says the opposite of the other
        ((1.0, 1.0, 0.0), (0.0, 0.0, 0.0), 2.5 / 3),  # the third rater sees no difference
        ((0.0, 0.0), (0.0, 0.0), 0.5),
        ((2.0, 2.0), (1.5, 1.5), 1.0),  # small differences of large means
        ((-1.5, -1.5), (-2.0, -2.0), 1.0),
        ((2.0, 1.0, 5.0), (1.0, 0.0), 1.0),  # more raters here than there: those of both count
    ],
)
def test_one_against_the_rest(better, worse, expected):
    assert one_against_the_rest(better, worse) == pytest.approx(expected)


def test_a_stage_without_a_scorer_is_not_measured():
    assert evaluator(RATED).evaluate(Subject()) == {}


@pytest.mark.parametrize("rankings", [[], PLAIN[1:], RATED[1:2]])
def test_data_without_a_pair_to_measure_on_are_refused(rankings):
    with pytest.raises(UserError, match=r"^evaluator.ranking_accuracy.split: no two responses in 'test' differ by"):
        evaluator(rankings)


def test_the_limit_is_on_rankings():
    assert evaluator(RATED, limit=1).evaluate(Subject(scorer=SCORES))["pairs"] == 3
