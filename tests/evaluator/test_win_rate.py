"""Win rates against the baseline: known counts, known intervals, and a judge that likes whatever comes first."""

import pytest
import torch

from rlhf_core.contracts.data import Prompt
from rlhf_core.contracts.evaluator import Subject
from rlhf_core.contracts.reward import Samples
from rlhf_plugins.evaluator.win_rate import WinRate, wilson


class Length:
    """Longer is better."""

    def setup(self, run):
        self.ready = True

    def score(self, samples):
        return torch.tensor([float(len(response)) for response in samples.responses])


class FirstOfAll:
    """Gives whatever it sees first more than what it sees next."""

    def __init__(self):
        self.next = 0.0

    def setup(self, run):
        pass

    def score(self, samples):
        self.next -= 1
        return torch.full((len(samples),), self.next)


def subject(mine, others):
    prompts = [Prompt(text="?")] * len(mine)
    return Subject(samples=Samples(prompts, mine), baseline=Samples(prompts, others))


def test_wins_are_counted_and_ties_split():
    found = WinRate(judge=Length()).evaluate(subject(["aaa", "b", "cc", "dddd"], ["a", "bb", "cc", "d"]))
    assert found["win_rate"] == 2.5 / 4
    assert (found["win_rate_low"], found["win_rate_high"]) == wilson(2.5, 4)
    assert (found["judge/length"], found["judge_start/length"]) == (10 / 4, 6 / 4)


def test_a_judge_that_prefers_the_first_gains_nothing_by_it():
    assert WinRate(judge=FirstOfAll()).evaluate(subject(["x"] * 5, ["y"] * 5))["win_rate"] == 0.5


def test_the_same_responses_win_half_the_time():
    assert WinRate(judge=Length()).evaluate(subject(["a", "bb"], ["a", "bb"]))["win_rate"] == 0.5


def test_there_may_be_nothing_to_judge():
    judge = WinRate(judge=Length())
    assert judge.evaluate(Subject()) == judge.evaluate(subject([], [])) == {}


def test_the_judge_is_set_up_and_is_the_lexicon_where_none_is_named():
    judge = WinRate(judge=Length())
    judge.setup(None)
    assert judge.judge.ready
    lexicon = WinRate()
    lexicon.setup(None)
    assert lexicon.evaluate(subject(["a lovely, good film"], ["an awful, bad film"]))["win_rate"] == 1.0


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # Newcombe (1998), Statistics in Medicine 17, method 3, and by its formula
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(wins, count, low, high):
    assert wilson(wins, count) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_another_model_may_be_the_opponent(start, checkpoints, reward_checkpoint):
    """Its answers, in its own tokens, to the same prompts; sampled once."""
    started = start(
        "algorithm=evaluate", "policy=hf", f"policy.path={checkpoints['llama']}", "algorithm.eval_prompts=6",
        "rollout.max_new_tokens=6", "evaluator=[win_rate]", f"evaluator.win_rate.against={checkpoints['gpt2']}",
        "+reward@evaluator.win_rate.judge=length", "evaluator.win_rate.judge.minimum=100",
        "evaluator.win_rate.judge.maximum=100",
    )  # fmt: skip
    evaluator = started.run.evaluators["win_rate"]
    first = started.algorithm.evaluate(0)
    answers = evaluator._opponent
    from rlhf_plugins.policy.hf import HF

    prompts = started.algorithm.held_out.prompts
    assert answers.prompts == prompts
    other = HF(path=str(checkpoints["gpt2"])).language_model(None)
    fresh = started.run.rollout.generate(other, answers.prompt_ids, started.run.generator("opponent"))
    assert fresh.responses == answers.response_ids
    mine = started.algorithm.held_out.start.samples.response_ids
    wins = [(len(a) > len(b)) + 0.5 * (len(a) == len(b)) for a, b in zip(mine, answers.response_ids, strict=True)]
    assert first["win_rate"] == sum(wins) / 6
    assert started.algorithm.evaluate(0) == first and evaluator._opponent is answers
