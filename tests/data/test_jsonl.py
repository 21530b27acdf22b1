"""The user's own files: every row form, the split, real human data, and rows that are wrong."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from rlhf_core.contracts.data import Data, Demonstration, Message, Prompt, Ranking
from rlhf_core.errors import UserError
from rlhf_plugins.data.jsonl import Jsonl

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
SPLITS = ("train", "validation", "test")
ALL_TRAIN = {"validation_fraction": 0.0, "test_fraction": 0.0}
USER = (Message("user", "Why?"),)


@pytest.fixture
def write(tmp_path):
    """Write rows (objects, or raw lines) to a file; gives its path."""

    def write(*rows, name="rows.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
        content = b"\n".join(lines)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(tmp_path / name)

    return write


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"the real data set {name} is not here; it is no part of the project")
    return SHARED / name


def loaded(**fields) -> Jsonl:
    data = Jsonl(**fields)
    data.setup(seed=0)
    assert isinstance(data, Data)
    return data


def error_of(**fields) -> str:
    with pytest.raises(UserError) as caught:
        loaded(**fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_row_form(write):
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    chat = [*turns, {"role": "assistant", "content": "Hello!"}]
    data = loaded(
        text_files=[write({"text": "Once."}, name="text.jsonl")],
        prompt_files=[write({"prompt": "Why?", "id": 7}, {"prompt": turns}, {"messages": chat}, name="prompts.jsonl")],
        demonstration_files=[write({"prompt": "Why?", "response": "So."}, {"messages": chat}, name="shown.jsonl")],
        ranking_files=[
            write({"prompt": "Why?", "chosen": "So.", "rejected": ""}, name="pairs.jsonl.gz"),
            write({"prompt": turns, "responses": ["a", "b", "c"], "ranks": [1, 0, 1.0]}, name="ranked.jsonl"),
        ],
        **ALL_TRAIN,
    )
    messages = (Message("system", "Be kind."), Message("user", "Hi"))
    assert data.text("train") == ["Once."]
    assert data.prompts("train") == [Prompt(messages=USER), Prompt(messages=messages), Prompt(messages=messages)]
    assert data.demonstrations("train") == [
        Demonstration(Prompt(messages=USER), "So."),
        Demonstration(Prompt(messages=messages), "Hello!"),
    ]
    assert data.rankings("train") == [
        Ranking(Prompt(messages=USER), ("So.", ""), (0.0, 1.0)),
        Ranking(Prompt(messages=messages), ("a", "b", "c"), (1.0, 0.0, 1.0)),
    ]
    assert data.text("test") == data.rankings("validation") == []


def test_plain_prompts_and_renamed_fields(write):
    file = write({"question": "The sea", "answer": " is wide."})
    data = loaded(
        demonstration_files=[file], chat=False, rename={"question": "prompt", "answer": "response"}, **ALL_TRAIN
    )
    assert data.demonstrations("train") == [Demonstration(Prompt(text="The sea"), " is wide.")]


def test_blank_lines_a_bom_and_windows_line_ends_are_no_rows(write):
    file = write(b'\xef\xbb\xbf{"text": "one"}\r', b"", b"  ", b'{"text": "tw\\u00f6"}\r', b"")
    assert loaded(text_files=[file], **ALL_TRAIN).text("train") == ["one", "twö"]


def test_equal_prompts_share_a_split_in_every_view_and_fractions_hold(write):
    rows = [{"prompt": f"question {i % 1000}", "response": f"answer {i}"} for i in range(3000)]
    pairs = [{"prompt": f" question\n{i}", "chosen": "a", "rejected": "b"} for i in range(1000)]  # but for white space
    files = {"demonstration_files": [write(*rows)], "ranking_files": [write(*pairs, name="pairs.jsonl")]}
    data = loaded(**files, validation_fraction=0.2, test_fraction=0.1)
    shown = {split: {item.prompt.shown for item in data.demonstrations(split)} for split in SPLITS}
    ranked = {split: {" ".join(item.prompt.shown.split()) for item in data.rankings(split)} for split in SPLITS}
    assert shown == ranked
    assert sum(map(len, shown.values())) == 1000
    assert [len(data.demonstrations(split)) for split in SPLITS] == [3 * len(shown[split]) for split in SPLITS]
    assert 650 < len(shown["train"]) < 750
    assert 150 < len(shown["validation"]) < 250
    again = loaded(demonstration_files=[write(*reversed(rows))], validation_fraction=0.2, test_fraction=0.1)
    assert {item.prompt.shown for item in again.demonstrations("test")} == shown["test"]


def test_files_held_out_whole_take_their_prompts_from_the_others(write):
    first = write(*({"prompt": f"q{i}", "response": "a"} for i in range(100)), name="train.jsonl")
    last = write({"prompt": "q7", "response": "b"}, {"prompt": "new", "response": "b"}, name="test.jsonl")
    data = loaded(demonstration_files=[first, last], test_files=[last], validation_fraction=0.0)
    assert [item.prompt.shown for item in data.demonstrations("test")] == ["q7", "q7", "new"]
    assert len(data.demonstrations("train")) == 99
    assert data.demonstrations("validation") == []


BAD_DEMONSTRATIONS = {
    b'{"prompt": "a"': "is not JSON (Expecting ',' delimiter at column 15)",
    b'{"prompt": "\xff"}': "is not UTF-8 (at byte 12)",
    b'["a"]': 'got ["a"], expected a JSON object',
    b'{"prompt": "a", "completion": "b"}': "response: missing (the row has prompt, completion); data.rename=",
    b'{"response": "b"}': "prompt: missing (the row has response)",
    b'{"prompt": null, "response": "b"}': "prompt: got null, expected a string",
    b'{"prompt": " ", "response": "b"}': "prompt: is empty",
    b'{"prompt": "a", "response": ""}': "response: is empty",
    b'{"prompt": "a", "response": "\\ud83d"}': "holds half of a surrogate pair",
    b'{"prompt": ["a"], "response": "b"}': 'prompt[0]: got "a", expected a list of turns',
    b'{"prompt": [], "response": "b"}': "prompt: ends with no turn, expected the user's",
    b'{"prompt": [{"role": "bot", "content": "a"}], "response": "b"}': 'prompt[0].role: got "bot", expected system',
    b'{"prompt": [{"role": "user", "content": 1}], "response": "b"}': "prompt[0].content: got 1, expected a string",
    b'{"messages": [{"role": "user", "content": "a"}]}': "messages: ends with user turn, expected the assistant's",
    b'{"messages": [{"role": "assistant", "content": "a"}]}': "messages: expected turns, and then an answer",
}
BAD_RANKINGS = {
    b'{"prompt": "a", "chosen": "b"}': "rejected: missing (the row has prompt, chosen)",
    b'{"prompt": "a", "chosen": "b", "rejected": 3}': "rejected: got 3, expected a string",
    b'{"prompt": "a", "responses": "b", "ranks": [1]}': 'responses: got "b", expected a list of strings',
    b'{"prompt": "a", "responses": ["b"], "ranks": [1]}': "responses: got 1, expected 2",
    b'{"prompt": "a", "responses": ["b", "c"], "ranks": [1]}': "ranks: got [1], expected 2 finite numbers",
    b'{"prompt": "a", "responses": ["b", "c"], "ranks": [1, NaN]}': "ranks: got [1, NaN], expected 2 finite numbers",
    b'{"prompt": "a", "responses": ["b", "c"], "ranks": [true, 0]}': "ranks[0]: got true, expected a list of numbers",
    b'{"prompt": "a", "responses": ["b", 2], "ranks": [1, 0]}': "responses[1]: got 2, expected a list of strings",
}


@pytest.mark.parametrize(
    ("view", "row", "message"),
    [("demonstration", *case) for case in BAD_DEMONSTRATIONS.items()]
    + [("ranking", *case) for case in BAD_RANKINGS.items()],
)
def test_a_bad_row_is_named_by_file_line_and_field(write, view, row, message):
    good = {"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"}
    file = write(good, b"", row, good)
    assert error_of(**{f"{view}_files": [file]}).startswith(f"{file}:3: {message}")


def test_all_bad_rows_of_a_file_are_counted(write):
    file = write({"text": "good"}, {"text": 1}, {"text": 2}, {"text": "good"}, {"txt": "c"})
    message = error_of(text_files=[file])
    assert message == f"{file}:2: text: got 1, expected a string (2 more bad rows in this file)"


def test_files_that_cannot_be_read_are_named(write, tmp_path):
    file = write({"text": "a"}, name="train.jsonl")
    typo = str(tmp_path / "trian.jsonl")
    assert error_of(text_files=[typo]) == f"{typo}: there is no such file. Did you mean {file}?"
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"text": "abc"}\n' * 1000)[:-20])
    assert error_of(text_files=[str(cut)]).startswith(f"{cut}: cannot be read")
    empty = write(b"\n", name="empty.jsonl")
    assert error_of(text_files=[empty]).startswith(f"{empty}: holds no rows")
    assert "cannot be read" in error_of(text_files=[str(tmp_path)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text_files": []}, "data.demonstration_files"),
        ({"test_fraction": 1.5}, "data.test_fraction: got 1.5"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "nothing to train on"),
        ({"rename": {"completion": "reponse"}}, "data.rename.completion: got reponse"),
        ({"test_files": ["other.jsonl"]}, "data.test_files: other.jsonl"),
    ],
)
def test_a_config_that_cannot_work_names_the_key(write, fields, message):
    assert message in error_of(**({"text_files": [write({"text": "a"})]} | fields))


def test_a_view_without_files_says_which_there_are(write):
    data = loaded(demonstration_files=[write({"prompt": "a", "response": "b"})])
    with pytest.raises(UserError, match=r"set data\.ranking_files=\[FILE\] \(set now: data\.demonstration_files\)"):
        data.rankings("train")


def test_real_demonstrations():
    file = str(shared("oasst_demonstrations/oasst_manual.jsonl"))
    data = loaded(demonstration_files=[file], prompt_files=[file], rename={"completion": "response"})
    rows = [item for split in SPLITS for item in data.demonstrations(split)]
    source = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    assert Counter((row.prompt.shown, row.response) for row in rows) == Counter(
        (row["prompt"], row["completion"]) for row in source
    )
    assert len(rows) == 1178
    assert [len(data.prompts(split)) for split in SPLITS] == [len(data.demonstrations(split)) for split in SPLITS]


def turns_of(dialogue: str) -> list[dict[str, str]]:
    """The turns of an hh-rlhf dialogue."""
    turns = []
    for part in dialogue.split("\n\nHuman: ")[1:]:
        human, *answers = part.split("\n\nAssistant:")
        turns += [{"role": "user", "content": human}]
        turns += [{"role": "assistant", "content": answer.strip()} for answer in answers]
    return turns


def test_real_comparisons(write):
    rows = []
    with gzip.open(shared("hh_rlhf_harmless/test.jsonl.gz"), "rt", encoding="utf-8") as lines:
        for line in lines:
            chosen, rejected = (turns_of(json.loads(line)[side]) for side in ("chosen", "rejected"))
            if chosen[:-1] == rejected[:-1] and chosen[-2]["role"] == "user":
                answers = {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
                rows.append({"prompt": chosen[:-1], **answers})
    assert len(rows) > 2200
    data = loaded(ranking_files=[write(*rows, name="hh.jsonl.gz")])
    prompts = [{item.prompt for item in data.rankings(split)} for split in SPLITS]
    assert sum(len(data.rankings(split)) for split in SPLITS) == len(rows)
    assert not prompts[0] & prompts[1] | prompts[1] & prompts[2] | prompts[0] & prompts[2]
    assert all(item.ranks == (0.0, 1.0) for item in data.rankings("train"))


def ranked_replies(node: dict, turns: tuple = ()) -> list[dict]:
    """Every set of ranked replies in a conversation tree."""
    role = {"prompter": "user", "assistant": "assistant"}[node["role"]]
    turns = (*turns, {"role": role, "content": node["text"]})
    replies = [reply for reply in node["replies"] if reply.get("rank") is not None]
    rows = [row for reply in node["replies"] for row in ranked_replies(reply, turns)]
    if role == "user" and len(replies) > 1:
        texts, ranks = [reply["text"] for reply in replies], [reply["rank"] for reply in replies]
        rows.append({"prompt": list(turns), "responses": texts, "ranks": ranks})
    return rows


def test_real_rankings(write):
    lines = shared("oasst_trees/en_100_tree.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines for row in ranked_replies(json.loads(line)["prompt"])]
    data = loaded(ranking_files=[write(*rows)])
    found = [item for split in SPLITS for item in data.rankings(split)]
    assert len(found) == len(rows) > 150
    assert Counter((item.responses, item.ranks) for item in found) == Counter(
        (tuple(row["responses"]), tuple(map(float, row["ranks"]))) for row in rows
    )
    assert {len(item.responses) for item in found} == {2, 3, 4, 5, 6, 8, 9}
