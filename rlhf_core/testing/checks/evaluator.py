"""What is asked of every evaluator."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from math import isfinite, isnan
from typing import Any

import torch

from ...contracts.evaluator import Evaluator, Subject
from ...contracts.reward import LISTS
from ..check import Checks, NotApplicable, fail, fail_if, naming
from ..process import seed
from ..world import World
from .random_state import RandomState
from .subjects import Traits, alone, dropping_out, few, full, none, other, parts

CHECKS = check = Checks()

PLAIN = re.compile(r"[^\s/]+(/[^\s/]+)*")
LEAST = 1e-6
"""Relative difference that is no rounding."""


@check(
    "numbers of a subject that has everything",
    why="an evaluator that never measures anything looks like one that had nothing to measure",
    cure="read what the stage offers: subject.scorer, or subject.samples and subject.baseline, or subject.policy",
)
def measures_something(evaluator: Evaluator, world: World) -> None:
    """A scorer, answers of two models and a policy."""
    _set_up(evaluator, world)
    found: Any = evaluator.evaluate(full(world))
    fail_if(found is None or found == {}, f"of a subject with scorer, samples, baseline and policy it gave {found!r}")


@check(
    "an empty dict of a subject that lacks what it measures",
    why="a stage offers what it has: a reward model's stage no samples, a policy's no scorer; an evaluator that raises "
    "ends the run, and one that makes a number up misleads",
    cure="begin evaluate() with: if subject.samples is None: return {} (of .samples, .policy … what you read)",
)
def gives_nothing_where_there_is_nothing(evaluator: Evaluator, world: World) -> None:
    """Nothing at all, then each part alone and all but one."""
    _set_up(evaluator, world)
    for name, subject in [("nothing", none()), *parts(world)]:
        with naming(f"a subject with {name}"):
            found = evaluator.evaluate(subject)
        fail_if(found is None or (name == "nothing" and found != {}), f"a subject with {name} gave {found!r}")


@check(
    "a dict of numbers",
    why="what an evaluator gives is logged as it is; a list, a text or a whole tensor cannot be",
    cure="return {name: float(value)}; of a tensor of one number, float(tensor)",
)
def gives_numbers(evaluator: Evaluator, world: World) -> None:
    """Of every subject it can measure."""
    for of, found in _measured(evaluator, world):
        wrong = found is not None and not isinstance(found, Mapping)  # of None, another check says so
        fail_if(wrong, f"of a subject with {of}, evaluate() gave {type(found).__name__}")
        for name, value in (found or {}).items():
            shape = tuple(getattr(value, "shape", ()))
            fail_if(shape != (), f"{name} is a {type(value).__name__} of shape {list(shape)}")
            try:
                fail_if(isinstance(value, str | bytes), f"{name} is text: {value!r}")
                float(value)
            except (TypeError, ValueError):
                fail(f"{name} is {type(value).__name__} {value!r}")


@check(
    "names that can be logged: one or more words joined by slashes",
    why="names are columns, tags and words on the command line; a space or an empty part breaks one of them",
    cure='names such as "win_rate" or "judge/sentiment", the same at each evaluation',
)
def names_are_plain(evaluator: Evaluator, world: World) -> None:
    """Text without white space; no empty part."""
    for _, found in _measured(evaluator, world):
        for name in found if isinstance(found, Mapping) else ():
            fail_if(not isinstance(name, str) or not PLAIN.fullmatch(name), f"a number is named {name!r}")


@check(
    "finite numbers",
    why="NaN and infinity are no JSON, cannot be drawn, and hide that something was divided by zero",
    cure="leave a number out where it is not defined",
)
def numbers_are_finite(evaluator: Evaluator, world: World) -> None:
    """Of every subject it can measure."""
    for of, found in _measured(evaluator, world):
        for name, value in _numbers(found).items():
            fail_if(not isfinite(value), f"{name} is {value} of a subject with {of}")


@check(
    "it measures one answer, and answers that are empty",
    why="a policy may fall silent, and algorithm.eval_prompts=1 is allowed: the run must not end by it",
    cure="guard divisions by a count or a length, and a standard deviation of one number",
)
def survives_few_and_empty_answers(evaluator: Evaluator, world: World) -> None:
    """One answer; one that is empty; nothing but empty ones."""
    for name, subject in few(world):
        one = deepcopy(evaluator)
        _set_up(one, world)
        with naming(name):
            found = one.evaluate(subject)
        wrong = [f"{key} is {value}" for key, value in _numbers(found).items() if not isfinite(value)]
        fail_if(bool(wrong), f"of {name}, {', '.join(wrong)}")


@check(
    "the same subject gives the same numbers",
    why="numbers are compared over training: what adds up from call to call, or is drawn anew, moves by itself",
    cure="keep nothing between calls that numbers depend on; where answers are drawn, make the generator anew in each "
    'call: run.generator("my_evaluator")',
)
def gives_the_same_numbers_again(evaluator: Evaluator, world: World) -> None:
    """Twice, and once more after another subject; global random numbers the same each time."""
    _set_up(evaluator, world)
    first = _evaluate(evaluator, full(world))
    _same(first, _evaluate(evaluator, full(world)), "when the same subject was evaluated again")
    _evaluate(evaluator, other(world))
    _same(first, _evaluate(evaluator, full(world)), "after another subject was evaluated")


@check(
    "each subject is measured anew",
    why="a policy is evaluated many times: an evaluator that remembers the first would say that nothing changed",
    cure="compute from the subject that evaluate() was given; keep only what does not depend on it",
)
def measures_each_subject_anew(evaluator: Evaluator, world: World) -> None:
    """Another subject after the first, against the same by a copy that saw no other."""
    fresh = deepcopy(evaluator)
    _set_up(evaluator, world)
    _evaluate(evaluator, full(world))
    after = _evaluate(evaluator, other(world))
    _set_up(fresh, world)
    _same(_evaluate(fresh, other(world)), after, "where another subject was evaluated before")


@check(
    "global random numbers do not matter",
    why="an evaluation that is drawn by chance cannot be repeated, and differs from run to run",
    cure='draw from run.generator("my_evaluator"), made anew in each call',
)
def ignores_global_random_numbers(evaluator: Evaluator, world: World) -> None:
    """Four copies, with other global seeds: by chance two may agree."""
    found = []
    for start in range(4):
        one = deepcopy(evaluator)
        _set_up(one, world)
        found.append(_evaluate(one, full(world), start))
    for then in found[1:]:
        _same(found[0], then, "with other global random numbers")


@check(
    "the process is left as it was",
    why="an evaluation is an observer: a run with it has to train as one without it, and training draws random numbers",
    cure="never call manual_seed or set_grad_enabled; use a generator of your own, and with torch.no_grad():",
)
def leaves_the_process_as_it_was(evaluator: Evaluator, world: World) -> None:
    """Global random numbers and whether gradients are recorded."""
    _set_up(evaluator, world)
    evaluator.evaluate(full(world))  # what is loaded once may draw numbers then
    before = RandomState.unusual()
    with torch.enable_grad():  # restored in the end, whatever happens
        evaluator.evaluate(full(world))
        recorded = torch.is_grad_enabled()
    before.refuse_change("evaluate()")
    fail_if(not recorded, "evaluate() left gradients switched off: the next loss has none")


@check(
    "the policy is left as it was",
    why="training goes on with it: other weights, gradients that were left over, or dropout that stays off, change "
    "what is learned",
    cure="evaluate in with policy.evaluating():, which puts the mode back; change nothing else, or a deepcopy of it",
)
def leaves_the_policy_as_it_was(evaluator: Evaluator, world: World) -> None:
    """In training and in evaluation; weights, gradients, what is trained, modes and the tokenizer."""
    _set_up(evaluator, world)
    for training in (True, False):
        subject = full(world)
        assert subject.policy is not None
        model = subject.policy.model.train(training)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        next(model.parameters()).requires_grad_(False)
        before = Traits.of(subject.policy)
        evaluator.evaluate(subject)
        changed = before.changed(Traits.of(subject.policy))
        fail_if(bool(changed), f"evaluate() changed {changed} of a policy in {'train' if training else 'eval'} mode")


@check(
    "the samples are left as they were",
    why="the next evaluator, the log of samples and the algorithm read the same lists",
    cure="copy a list before sorting or changing it: sorted(samples.responses)",
)
def leaves_the_samples_as_they_were(evaluator: Evaluator, world: World) -> None:
    """Answers of the policy and of the start model."""
    _set_up(evaluator, world)
    subject = full(world)
    before = {name: _lists(getattr(subject, name)) for name in ("samples", "baseline")}
    evaluator.evaluate(subject)
    for name, lists in before.items():
        for field, values in _lists(getattr(subject, name)).items():
            fail_if(values != lists[field], f"subject.{name}.{field} was {lists[field]} and is {values}")


@check(
    "dropout does not matter",
    why="a policy comes as it is trained, with dropout on: numbers measured like that are noisy, and of no policy that "
    "anybody uses",
    cure="measure in with policy.evaluating():",
)
def measures_without_dropout(evaluator: Evaluator, world: World) -> None:
    """A policy with dropout, in training and in evaluation."""
    found = []
    for training in (False, True):
        one, subject = deepcopy(evaluator), dropping_out(world)
        _set_up(one, world)
        assert subject.policy is not None
        subject.policy.model.train(training)
        found.append(_evaluate(one, subject))
    _same(found[0], found[1], "with the policy in train mode, where it has dropout")


def _set_up(evaluator: Evaluator, world: World) -> None:
    world.run(policy=alone(), evaluator={"it": evaluator})


def _measured(evaluator: Evaluator, world: World) -> Iterator[tuple[str, Any]]:
    """What it gives of subjects that it can measure; that it can measure none is the matter of a check of its own."""
    _set_up(evaluator, world)
    yield "everything", evaluator.evaluate(full(world))
    for name, subject in parts(world):
        try:
            yield name, evaluator.evaluate(subject)
        except Exception:  # another check says so
            continue


def _evaluate(evaluator: Evaluator, subject: Subject, start: int = 0) -> dict[str, float]:
    seed(start)
    return _numbers(evaluator.evaluate(subject))


def _numbers(found: Any) -> dict[str, float]:
    """Those that are numbers; that others are not is the matter of a check of its own."""
    numbers = {}
    for name, value in found.items() if isinstance(found, Mapping) else ():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue
    return numbers


def _same(one: dict[str, float], then: dict[str, float], when: str) -> None:
    if not one and not then:
        raise NotApplicable("it measured nothing")
    lost = sorted(one.keys() ^ then.keys())
    fail_if(bool(lost), f"{', '.join(lost)} was there only once, {when}")
    for name, value in one.items():
        if isnan(value) and isnan(then[name]):
            continue
        apart = not abs(value - then[name]) <= LEAST * max(1.0, abs(value))
        fail_if(value != then[name] and apart, f"{name} was {value:.6g} and, {when}, {then[name]:.6g}")


def _lists(samples: Any) -> dict[str, list[Any]]:
    return {name: deepcopy(list(getattr(samples, name))) for name in LISTS}
