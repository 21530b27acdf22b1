"""What is typed: every mistake is one line that names it, and the nearest right word."""

import pytest

from rlhf_core.bench.ops import operations, presets
from rlhf_core.bench.run import DTYPES, KEYS, ask
from rlhf_core.errors import UserError
from rlhf_core.help import help_text

MISTAKES = {
    ("opp=shaped_gae",): "Did you mean op?",
    ("op=gae",): "Did you mean shaped_gae?",
    ("op=",): "op takes a value",
    ("op",): "op takes a value",
    ("op=ppo_loss", "op=grpo_loss"): "given twice",
    ("op=ppo_loss,",): "op=: no such op",
    ("impl=vectorized",): "Did you mean vectorised?",
    ("preset=rlhf7b",): "Did you mean rlhf-7b?",
    ("op=ranking_loss", "preset=rlhf-7b"): "has no shapes of ranking_loss; that is in ci, ranking",
    ("op=shaped_gae", "shape=64"): "shaped_gae takes <sequences>x<tokens>",
    ("op=shaped_gae", "shape=0x4"): "shaped_gae takes <sequences>x<tokens>",
    ("op=shaped_gae", "mode=bwd"): "shaped_gae has no gradient",
    ("dtype=float23",): "Did you mean float32?",
    ("mode=forward",): "there are: fwd, bwd, full",
    ("lengths=ragged,long",): "lengths=long: no such lengths; there are: full, ragged",
    ("op=attention", "shape=4x64"): "attention takes <sequences>x<tokens>x<query_heads>x<key_heads>x<head_size>",
    ("device=gpu",): "device=gpu: cannot be used here",
    ("reps=0",): "expected a number above 0",
    ("reps=2.5",): "expected a whole number",
    ("seconds=long",): "expected a number above 0",
    ("threads=-1",): "expected a number above 0",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_with_the_remedy(words, bench):
    done = bench("run", *words)
    assert done.code == 1
    assert MISTAKES[words] in done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("lst",), ("report",), ("compare", "a"), ("list", "op=x")], ids=str)
def test_so_are_mistakes_in_the_other_commands(words, bench):
    done = bench(*words)
    assert done.code == 1
    assert done.err.startswith("error: ") and done.err.count("\n") == 1


def test_defaults_are_every_op_of_the_ci_preset():
    asked = ask([])
    assert {operation.name for operation, _ in asked.cases} == set(operations())
    assert asked.dtypes == ("float32",) and asked.modes == ("full",) and asked.lengths == ("full",)


def test_lists_and_shapes():
    asked = ask(["op=ppo_loss,ranking_loss", "shape=3x4", "dtype=float32,bfloat16", "mode=fwd,bwd", "impl=eager"])
    assert [(operation.name, shape) for operation, shape in asked.cases] == [
        ("ppo_loss", "3x4"),
        ("ranking_loss", "3x4"),
    ]
    assert asked.dtypes == ("float32", "bfloat16") and asked.modes == ("fwd", "bwd")
    assert [one.name for one in asked.implementations] == ["eager"]
    assert ask(["lengths=full,ragged"]).lengths == ("full", "ragged")


def test_a_preset_takes_the_ops_that_it_has():
    assert {operation.name for operation, _ in ask(["preset=ranking"]).cases} == {"ranking_loss"}
    with pytest.raises(UserError):
        ask(["preset=dpo", "op=ranking_loss"])


def test_help_names_every_key_op_preset_and_dtype():
    text = help_text("bench")
    for word in (*(f"{key}=" for key in KEYS), *operations(), *presets(), *DTYPES):
        assert word in text, word


def test_every_shape_of_every_preset_is_a_shape():
    for operation in operations().values():
        for shapes in operation.presets.values():
            assert all(operation.sizes(shape) for shape in shapes)
