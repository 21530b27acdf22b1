"""A calculator inside responses: ``<<48/2=`` is answered by ``24>>``, which the policy reads and is not trained on."""

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from rlhf_core.language_model import LanguageModel

from .transformers import Transformers

LONGEST = 64
"""characters of an expression, and so also the most tokens it takes"""
PLACES = 10
"""decimal places of a value that has more"""
LONGEST_VALUE = 24
"""characters of a value; a longer one is not said"""
BOUND = 10**15
"""what a number has to stay below for its digits to survive Python's float"""
EXPRESSION = rf"[-+*/().0-9]{{1,{LONGEST}}}"
ASKED = re.compile(rf"<<({EXPRESSION})=\Z")
OPERATORS: dict[type[ast.AST], Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@dataclass
class Calculator(Transformers):
    """GSM8K's calculator annotations (Cobbe et al. 2021, arXiv:2110.14168, §4.2).

    Where the sampled text ends in ``<<EXPRESSION=``, the value and ``>>`` follow. Numbers, ``+ - * / ( ) .`` are
    understood, at most 64 characters; after anything else the policy goes on by itself.
    """

    rlhf_api: ClassVar[int] = 1

    def insert(self, model: LanguageModel, response: Sequence[int]) -> list[int]:
        """The value's tokens, where one is asked for."""
        decode = model.tokenizer.decode
        if not decode(response[-1:]).endswith("="):  # one token's text a step; the tail's is seldom needed
            return []
        asked = ASKED.search(decode(response[-LONGEST - 3 :]))  # a token a character, «<<» and «=»
        value = asked and answer(asked[1])
        return continuation(model.tokenizer, f"{value}>>") if value else []


def continuation(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that stands right behind another one; some tokenizers begin a text with a space."""
    ids: list[int] = tokenizer.encode(f"a{text}", add_special_tokens=False)
    ends = (place for place in range(1, len(ids)) if tokenizer.decode(ids[:place]).endswith("a"))
    return ids[next(ends, len(ids)) :]


def answer(expression: str) -> str | None:
    """The value of an expression as GSM8K writes it, ``24`` or ``0.75``; None where it has none."""
    if not re.fullmatch(EXPRESSION, expression):
        return None
    try:
        value = value_of(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError):
        return None
    text = written(value)
    return text if len(text) <= LONGEST_VALUE else None


def value_of(node: ast.AST) -> Fraction:
    """The exact value of a tree of numbers and the four operations; a KeyError at anything else."""
    match node:
        case ast.Constant(value=int() | float() as number) if number < BOUND:
            return Fraction(str(number))
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](value_of(left), value_of(right))
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](value_of(operand))
    raise KeyError(type(node).__name__)


def written(value: Fraction) -> str:
    """Whole numbers without a point, others with the decimal places they need."""
    scaled = round(value * 10**PLACES)
    whole, rest = divmod(abs(scaled), 10**PLACES)
    return "-" * (scaled < 0) + f"{whole}.{rest:0{PLACES}}".rstrip("0").rstrip(".")
