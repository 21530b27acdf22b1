"""Data sources: right ones pass, each fault fails its own check, ours pass."""

import json

import pytest

from rlhf_core.plugins import load
from rlhf_core.testing.checks.data import CHECKS
from rlhf_plugins.data.human_ratings import DOMAINS, read_sentences

from ..data.test_human_ratings import sdist as sdist  # a fixture
from ..data.test_human_ratings import sdist_of
from . import wrong_data as wrong
from .mistakes import failed, found_alone, outcomes

NAN = float("nan")

MISTAKES = [
    (wrong.NotImplementedView(), {"gives_each_view_or_raises_user_error": "text('train') raised NotImplementedError"}),
    (wrong.KeyOfASplit(), {"gives_each_view_or_raises_user_error": "text('validation') raised KeyError"}),
    (wrong.NoneForAView(), {"gives_each_view_or_raises_user_error": "text('train') gave None"}),
    (
        wrong.SilentError(),
        {"says_which_views_it_has": '"not available" names none of demonstrations, prompts'},
    ),
    (wrong.EmptyView(), {"lacks_a_view_aloud": "text gave no row in train, validation, test"}),
    (wrong.NothingToTrainOn(), {"has_rows_to_train_on": "no view has a row in train (prompts: 0)"}),
    (wrong.GeneratorView(), {"gives_sequences": "gave a generator, which has no __len__ and no __getitem__"}),
    (wrong.OneText(), {"gives_sequences": "gave one str, not a list"}),
    (wrong.ByName(), {"gives_sequences": "raised KeyError"}),
    (wrong.EndlessRows(), {"gives_sequences": "has 48 rows; [48] raised nothing"}),
    (wrong.NoLastRow(), {"gives_sequences": "has length 48, but [-1] or [47] raised IndexError"}),
    (wrong.UsedUp(), {"gives_the_same_rows_again": "demonstrations('train'), row 0 is"}),
    (wrong.SharedGenerator(), {"ignores_which_view_is_read_first": "demonstrations('train'), row 0 is"}),
    (
        wrong.TestedOnTrained(),
        {"splits_share_no_row": "text: 6 of 6 rows of test", "holds_out_other_prompts": None},
    ),
    (wrong.OneRowTooMany(), {"splits_share_no_row": "demonstrations: 1 of 7 rows of validation are in train"}),
    (wrong.NeverSplit(), {"holds_out_other_prompts": "60 of 60 different prompts of validation"}),
    (wrong.BlankDocument(), {"texts_are_valid": "text('train'), row 3: the document is blank"}),
    (wrong.BytesDocument(), {"texts_are_valid": "the document is bytes b'Film"}),
    (wrong.TextPrompt(), {"prompts_are_valid": "prompts('train'), row 0: it is str"}),
    (wrong.DictMessages(), {"prompts_are_valid": "messages[0] is dict"}),
    (wrong.HumanRole(), {"prompts_are_valid": "messages[0].role is 'human', expected system, user, assistant"}),
    (wrong.EndsWithTheAnswer(), {"prompts_are_valid": "messages end with the turn of 'assistant'"}),
    (wrong.BothKinds(), {"prompts_are_valid": "has both messages and text"}),
    (wrong.EmptyPrompt(), {"prompts_are_valid": "its text is ''"}),
    (wrong.BlankTurn(), {"prompts_are_valid": "messages[1].content is blank: '  '"}),
    (wrong.NumberContent(), {"prompts_are_valid": "messages[0].content is int 7, no str"}),
    (wrong.LastRowOfTest(), {"prompts_are_valid": "prompts('test'), row 5: the prompt is blank"}),
    (wrong.PairsForDemonstrations(), {"demonstrations_are_valid": "it is tuple"}),
    (wrong.EmptyResponse(), {"demonstrations_are_valid": "demonstrations('train'), row 47: response is blank: ''"}),
    (wrong.MessageResponse(), {"demonstrations_are_valid": "response is Message"}),
    (wrong.PromptInResponse(), {"responses_begin_after_the_prompt": "in 60 of 60 rows"}),
    (wrong.PromptInRanked(), {"responses_begin_after_the_prompt": "in 60 of 60 rows"}),
    (wrong.OneResponse(), {"rankings_are_valid": "it has 1 responses, expected 2 to 9"}),
    (wrong.TenResponses(), {"rankings_are_valid": "it has 10 responses, expected 2 to 9"}),
    (wrong.DictRankings(), {"rankings_are_valid": "it is dict"}),
    (wrong.WithRanking(fields={"ranks": (0.0, 1.0)}), {"rankings_are_valid": "it has 2 ranks for 3 responses"}),
    (wrong.WithRanking(fields={"ranks": (0.0, NAN, 1.0)}), {"rankings_are_valid": "ranks[1] is nan"}),
    (wrong.WithRanking(fields={"ranks": (True, False, False)}), {"rankings_are_valid": "ranks[0] is bool True"}),
    (wrong.WithRanking(fields={"ratings": ((1.0,), (2.0,))}), {"rankings_are_valid": "ratings of 2 responses, of 3"}),
    (wrong.WithRanking(fields={"ratings": (1.0, 5.0, 3.0)}), {"rankings_are_valid": "ratings[0] is float 1.0"}),
    (wrong.WithRanking(fields={"ratings": ((1.0,), (NAN,), (3.0,))}), {"rankings_are_valid": "ratings[1][0] is nan"}),
    (wrong.WithRanking(fields={"responses": ("a", None, "b")}), {"rankings_are_valid": "responses[1] is NoneType"}),
    (wrong.ReversedRanks(), {"ranks_agree_with_ratings": "180 of 180 pairs are the wrong way round"}),
    (wrong.RatingsAsRanks(), {"ranks_agree_with_ratings": "ranks 1.5 and 4.5 for mean ratings 1.5 and 4.5"}),
    (wrong.WithRanking(fields={"ranks": (0.0, 0.0, 0.0)}), {"rankings_tell_responses_apart": "tied in each of the 60"}),
    (wrong.ChosenTwice(), {"rankings_tell_responses_apart": "in 60 of 60 rankings"}),
    (
        wrong.FromTheClock(),
        {
            "same_seed_same_order": "text('train'), row 0 is",
            "ignores_global_random_numbers": None,
            "ignores_which_view_is_read_first": None,
            "same_order_in_another_process": None,
        },
    ),
    (
        wrong.FromTheGlobalGenerator(),
        {
            "leaves_global_random_numbers_alone": "setup changed the state of random",
            "ignores_global_random_numbers": "with other global random numbers",
            "ignores_which_view_is_read_first": None,
            "same_order_in_another_process": None,
        },
    ),
    (
        wrong.FromNumpy(),
        {
            "leaves_global_random_numbers_alone": "setup changed the state of numpy.random",
            "ignores_global_random_numbers": "demonstrations('train')",
            "ignores_which_view_is_read_first": None,
            "same_order_in_another_process": None,
        },
    ),
    (wrong.SeedsTheGlobalGenerator(), {"leaves_global_random_numbers_alone": "setup changed the state of random"}),
    (wrong.OrderOfASet(), {"same_order_in_another_process": "in another process"}),
    (wrong.SplitByHash(), {"same_order_in_another_process": "rows and, in another process"}),
    (wrong.SmallSeeds(), {"takes_any_seed": "setup(4294967297) raised ValueError"}),
]


@pytest.mark.parametrize(("plugin", "expected"), MISTAKES, ids=lambda value: type(value).__name__)
def test_each_mistake_fails_its_own_check(plugin, expected):
    found_alone(failed(plugin, "data", CHECKS), expected)


def test_each_check_has_a_mistake():
    assert {check.name for check in CHECKS} == {name for _, expected in MISTAKES for name in expected}


@pytest.mark.parametrize("plugin", wrong.RIGHT, ids=lambda value: type(value).__name__)
def test_right_ones_pass(plugin):
    assert [str(one) for one in failed(plugin, "data", CHECKS).values()] == []


def test_a_mistake_is_told_whole():
    told = str(failed(wrong.HumanRole(), "data", CHECKS)["prompts_are_valid"])
    assert "row 0" in told and "(180 of 180 rows that were looked at are wrong)" in told
    assert 'Message("user", "…")' in told


def test_what_another_process_cannot_import_is_skipped():
    class Local(wrong.Right):
        pass

    outcome = outcomes(Local(), "data", CHECKS)["same_order_in_another_process"]
    assert outcome.status == "skipped" and outcome.reason.startswith("another process cannot be handed it")


def test_jsonl(data_files):
    plugin = load("data", "jsonl")(**{f"{view}_files": [str(path)] for view, path in data_files.items()})
    found = outcomes(plugin, "data", CHECKS)
    assert {name: one.reason for name, one in found.items() if one.status != "passed"} == {
        "ranks_agree_with_ratings": "no ranking has ratings that differ"
    }


def test_jsonl_of_prompts_alone(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(50)))
    assert [str(one) for one in failed(load("data", "jsonl")(prompt_files=[str(path)]), "data", CHECKS).values()] == []


EACH = 20
"""One of so many sentences: a check reads them anew, and all of them take it a second."""


def test_human_ratings(sdist, tmp_path):
    files: dict[str, list[str]] = {
        f"{stem}_{end}": [] for stem in DOMAINS for end in ("anonDataRatings", "GroundTruth")
    }
    stems = {domain: stem for stem, domain in DOMAINS.items()}
    for number, one in enumerate(list(read_sentences(sdist))[::EACH]):
        stem = stems[one.domain]
        files[f"{stem}_anonDataRatings"].append(f"{number}\t{list(one.ratings)}")
        files[f"{stem}_GroundTruth"].append(f"{number}\t{one.mean}\t{one.text}")
    packed = {f"{name}.txt": "\n".join(lines).encode() for name, lines in files.items()}
    small = sdist_of(packed, tmp_path / "small.tar.gz")
    found = outcomes(load("data", "human_ratings")(path=str(small)), "data", CHECKS)
    assert {name: str(one) for name, one in found.items() if one.status != "passed"} == {}
