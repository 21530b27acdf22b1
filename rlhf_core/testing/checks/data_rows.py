"""What is asked of the rows of every data source."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import isfinite
from numbers import Real
from statistics import fmean
from typing import Any

from ...contracts.data import Data, Demonstration, Message, Prompt, Ranking
from ..check import Checks, NotApplicable, fail, fail_if
from ..world import World
from .data_reading import read, text_of

check = Checks()

ROLES = ("system", "user", "assistant")
RESPONSES = range(2, 10)


@check(
    "every document is text, and not blank",
    why="a document is tokenized as it is: what is no text raises then, and a blank one teaches to say nothing",
    cure="give str, and leave blank documents out",
)
def texts_are_valid(data: Data, world: World) -> None:
    """Documents."""
    _check(data, ("text",), lambda _, row: _wrong_text("the document", row))


@check(
    "every prompt can be answered",
    why="a prompt goes through the chat template up to where the assistant speaks: one that ends with an answer, or "
    "says nothing, trains the policy to speak to itself",
    cure='Prompt(messages=(Message("user", "…"),)), the last turn the user\'s, or Prompt(text="…") that is continued',
)
def prompts_are_valid(data: Data, world: World) -> None:
    """Prompts alone, and those of demonstrations and rankings."""

    def wrong(view: str, row: Any) -> Iterator[str]:
        if view == "prompts":
            yield from _wrong_prompt("", row)
        elif isinstance(row, Demonstration | Ranking):  # else another check says so
            yield from _wrong_prompt("prompt", row.prompt)

    _check(data, ("prompts", "demonstrations", "rankings"), wrong)


@check(
    "every demonstration has a response that says something",
    why="supervised fine-tuning imitates each response word for word",
    cure='Demonstration(prompt, "the response alone, as str"); leave rows without one out',
)
def demonstrations_are_valid(data: Data, world: World) -> None:
    """Type and response."""

    def wrong(_: str, row: Any) -> Iterator[str]:
        if isinstance(row, Demonstration):
            yield from _wrong_text("response", row.response)
        else:
            yield f"it is {_shown(row)}, no Demonstration"

    _check(data, ("demonstrations",), wrong)


@check(
    "every ranking has 2 to 9 responses, and a finite rank for each",
    why="a reward model's loss goes over the pairs of each ranking; one number too few, or NaN, and all of it is lost",
    cure="Ranking(prompt, responses, ranks): as many ranks as responses, 0.0 the best, equal numbers for a tie; "
    "ratings, where given, a tuple of finite numbers for each response",
)
def rankings_are_valid(data: Data, world: World) -> None:
    """Type, counts and numbers."""
    _check(data, ("rankings",), lambda _, row: _wrong_ranking(row))


@check(
    "what raters like better has the smaller rank",
    why="smaller is better: with ranks the wrong way round, a reward model learns to prefer what people like least",
    cure="0 is the best: rank by falling rating, or turn the ranks round; a source's scores are ratings, not ranks",
)
def ranks_agree_with_ratings(data: Data, world: World) -> None:
    """Pairs that differ in both, of all rankings that have ratings."""
    data.setup(0)
    agree, contrary = 0, ""
    disagree = 0
    for name, row in _rankings(data):
        for i, j in combinations(range(min(len(row.responses), len(row.ranks), len(row.ratings))), 2):
            ranks, means = row.ranks[i] - row.ranks[j], fmean(row.ratings[i]) - fmean(row.ratings[j])
            agree, disagree = agree + (ranks * means < 0), disagree + (ranks * means > 0)
            if ranks * means > 0 and not contrary:
                contrary = f"in {name}, ranks {_pair(row.ranks, i, j)} for mean ratings {_means(row, i, j)}"
    if not agree + disagree:
        raise NotApplicable("no ranking has ratings that differ")
    fail_if(disagree > agree, f"{disagree} of {agree + disagree} pairs are the wrong way round: {contrary}")


@check(
    "rankings tell responses apart",
    why="a pair that is tied, or of twice the same response, has no gradient worth the name",
    cure="check which field ranks and responses are read from; leave out what has no order at all",
)
def rankings_tell_responses_apart(data: Data, world: World) -> None:
    """Ties are allowed; not nothing but ties, nor mostly the same response twice."""
    data.setup(0)
    rows = list(_rankings(data))
    if not rows:
        raise NotApplicable("it has no rankings")
    tied = [name for name, row in rows if len(set(row.ranks)) < 2]
    fail_if(len(tied) == len(rows), f"all responses are tied in each of the {len(rows)} rankings, such as {tied[:1]}")
    same = [name for name, row in rows if len(set(row.responses)) < 2]
    fail_if(
        2 * len(same) > len(rows),
        f"in {len(same)} of {len(rows)} rankings all responses are the same text, such as {', '.join(same[:1])}",
    )


@check(
    "a response does not repeat its prompt",
    why="prompt and response are joined when they are tokenized: with the prompt in both, the model learns to say it "
    "again, and a policy never writes such responses",
    cure="cut the prompt, the turns before the answer, off the response",
)
def responses_begin_after_the_prompt(data: Data, world: World) -> None:
    """Not most of them."""
    data.setup(0)
    for view in ("demonstrations", "rankings"):
        repeated, count = [], 0
        for (_, split), rows in read(data, (view,)).items():
            for number, row in rows.some.items():
                count += 1
                if _repeats(row):
                    repeated.append(f"{view}({split!r}), row {number}: {text_of(row)}")
        fail_if(2 * len(repeated) > count > 0, f"in {len(repeated)} of {count} rows it does, such as {repeated[:1]}")


def _repeats(row: Any) -> bool:
    try:
        shown = row.prompt.shown.strip()
        responses = [row.response] if isinstance(row, Demonstration) else row.responses
        return bool(shown) and all(text.strip().startswith(shown) and text.strip() != shown for text in responses)
    except (AttributeError, TypeError):  # another check says so
        return False


Wrong = Callable[[str, Any], Iterator[str]]
"""View and row → what is wrong with it."""


def _check(data: Data, views: Sequence[str], wrong: Wrong) -> None:
    """The first row at fault, and how many there are."""
    data.setup(0)
    found = []
    there = read(data, views)
    for (view, split), rows in there.items():
        for number, row in rows.some.items():
            if problem := next(wrong(view, row), ""):
                found.append(f"{view}({split!r}), row {number}: {problem}")
    if not there:
        raise NotApplicable(f"it has no {' and no '.join(views)}")
    count = sum(len(rows.some) for rows in there.values())
    if found:
        fail(f"{found[0]} ({len(found)} of {count} rows that were looked at are wrong)")


def _wrong_text(field: str, text: Any) -> Iterator[str]:
    if not isinstance(text, str):
        yield f"{field} is {_shown(text)}, no str"
    elif not text.strip():
        yield f"{field} is blank: {text!r}"


def _wrong_prompt(field: str, prompt: Any) -> Iterator[str]:
    dot = f"{field}." if field else ""
    if not isinstance(prompt, Prompt):
        yield f"{field or 'it'} is {_shown(prompt)}, no Prompt"
        return
    if not isinstance(prompt.text, str) or not isinstance(prompt.messages, tuple | list):
        yield f"{dot}text is {_shown(prompt.text)}, {dot}messages {_shown(prompt.messages)}; expected str, and a tuple"
        return
    if prompt.messages and prompt.text:
        yield f"it has both {dot}messages and {dot}text ({_shown(prompt.text)}); expected one of them"
    if not prompt.messages and not prompt.text.strip():
        yield f"{field or 'the prompt'} is blank: it has no messages, and its text is {prompt.text!r}"
    for number, message in enumerate(prompt.messages):
        yield from _wrong_message(f"{dot}messages[{number}]", message)
    if prompt.messages and prompt.messages[-1].role != "user":
        yield f"{dot}messages end with the turn of {prompt.messages[-1].role!r}, expected the user's"


def _wrong_message(field: str, message: Any) -> Iterator[str]:
    if not isinstance(message, Message):
        yield f"{field} is {_shown(message)}, no Message"
    elif message.role not in ROLES:
        yield f"{field}.role is {message.role!r}, expected {', '.join(ROLES)}"
    elif message.role != "system" or not isinstance(message.content, str):  # an empty system turn is a way to have none
        yield from _wrong_text(f"{field}.content", message.content)


def _wrong_ranking(row: Any) -> Iterator[str]:
    if not isinstance(row, Ranking):
        yield f"it is {_shown(row)}, no Ranking"
        return
    for field in ("responses", "ranks", "ratings"):
        if not isinstance(getattr(row, field), tuple | list):
            yield f"{field} is {_shown(getattr(row, field))}, no tuple"
            return
    count = len(row.responses)
    if count not in RESPONSES:
        yield f"it has {count} responses, expected 2 to 9"
    for number, text in enumerate(row.responses):  # people do rank empty answers
        if not isinstance(text, str):
            yield f"responses[{number}] is {_shown(text)}, no str"
    if len(row.ranks) != count:
        yield f"it has {len(row.ranks)} ranks for {count} responses"
    yield from _wrong_numbers("ranks", row.ranks)
    if row.ratings and len(row.ratings) != count:
        yield f"it has ratings of {len(row.ratings)} responses, of {count}"
    for number, ratings in enumerate(row.ratings):
        if not isinstance(ratings, tuple | list) or not ratings:
            yield f"ratings[{number}] is {_shown(ratings)}, expected a number of each rater"
        else:
            yield from _wrong_numbers(f"ratings[{number}]", ratings)


def _wrong_numbers(field: str, numbers: Sequence[Any]) -> Iterator[str]:
    for place, number in enumerate(numbers):
        if isinstance(number, bool) or not isinstance(number, Real):
            yield f"{field}[{place}] is {_shown(number)}, no number"
        elif not isfinite(number):
            yield f"{field}[{place}] is {number}, which is not finite"


def _rankings(data: Data) -> Iterator[tuple[str, Ranking]]:
    """Those that are valid, each with its place."""
    for (view, split), rows in read(data, ("rankings",)).items():
        for number, row in rows.some.items():
            if not any(_wrong_ranking(row)):
                yield f"{view}({split!r}), row {number}", row


def _pair(numbers: Sequence[float], i: int, j: int) -> str:
    return f"{numbers[i]:g} and {numbers[j]:g}"


def _means(row: Ranking, i: int, j: int) -> str:
    return _pair([fmean(ratings) for ratings in row.ratings], i, j)


def _shown(value: Any) -> str:
    """Type and value, short."""
    return f"{type(value).__name__} {text_of(value)}"
