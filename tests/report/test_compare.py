"""Several runs on one page."""

import json
from html import escape

import pytest

from rlhf_core.report.compare import best_of, groups
from rlhf_core.report.read import read


def compared(*folders):
    return groups([pipeline for folder in folders for pipeline in read(folder)])


def test_only_the_keys_that_differ_are_named(make_ppo):
    (group,) = compared(make_ppo("a", kl_coef=0.05), make_ppo("b", kl_coef=0.2, steps=30))
    assert group.differing == {"steps": ["60", "30"], "algorithm.kl_coef": ["0.05", "0.2"]}


def test_a_key_that_one_config_lacks_differs(make_ppo):
    first, second = make_ppo("a"), make_ppo("b")
    (second / "config.yaml").write_text((first / "config.yaml").read_text() + "extra: {key: null}\n")
    (group,) = compared(first, second)
    assert group.differing["extra.key"] == ["not set", "null"]


@pytest.mark.parametrize("absolute", [True, False])
def test_where_a_run_lies_is_no_setting(make_ppo, absolute):
    folders = make_ppo("a"), make_ppo("b")
    for folder in folders:
        place = folder if absolute else f"{folder.parent.name}/{folder.name}"
        (folder / "config.yaml").write_text(f"run_dir: {place}\npath: {place}/result\n")
    assert compared(*folders)[0].differing == {}


def test_stages_of_pipelines_are_compared_by_name(make_pipeline):
    found = compared(make_pipeline("a"), make_pipeline("b", kl_coef=0.2))
    assert [group.title for group in found] == ["pretrain", "sft", "reward_model", "ppo"]
    assert [list(group.differing) for group in found] == [[], [], [], ["algorithm.kl_coef"]]


def test_runs_of_two_algorithms_are_not_mixed(make_ppo, make_lm):
    found = compared(make_ppo("a"), make_lm("b"), make_ppo("c"))
    assert {group.title: [entry.label for entry in group.entries] for group in found} == {
        "ppo": ["a", "c"],
        "lm": ["b"],
    }


def test_results_are_those_of_the_summaries_and_the_best_is_marked(make_lm):
    folders = make_lm("a", end=3.9), make_lm("b", end=3.5), make_lm("c", end=4.4)
    (group,) = compared(*folders)
    losses = [json.loads((folder / "summary.json").read_text())["metrics"]["loss"] for folder in folders]
    assert [cell.text for cell in group.results["loss"]] == [f"{loss:.3f}" for loss in losses]
    assert [cell.best for cell in group.results["loss"]] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("loss", [3.0, 2.0, None], 2.0),
        ("judge/sentiment", [0.1, 0.4], 0.4),
        ("win_rate", [0.5, 0.5], None),
        ("kl", [1.0, 9.0], None),
        ("length", [1.0, 9.0], None),
        ("human", [0.9, 0.8], None),
    ],
)
def test_best_only_where_better_has_a_direction(name, values, best):
    assert best_of(name, values) == best


def test_a_sweep_is_compared_in_the_order_of_its_jobs(show, make_ppo, tmp_path):
    for job in (10, 2, 0):
        make_ppo(f"sweep/{job}", kl_coef=0.01 * (job + 1))
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: {}\n")
    (group,) = compared(tmp_path / "sweep")
    assert [entry.label for entry in group.entries] == ["0", "2", "10"]
    page = show(tmp_path / "sweep")
    assert "algorithm.kl_coef" in page.text
    assert "3 runs compared" in page.text
    assert all(not attrs.get(name) for _, attrs in page.elements for name in ("src", "href"))


def test_curves_hold_each_runs_numbers(make_ppo, show):
    folders = make_ppo("a"), make_ppo("b", kl_coef=0.2)
    figure = show(*folders).figure("reward")
    for folder, trace in zip(folders, figure["data"], strict=True):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert trace["name"] == folder.name
        assert trace["y"] == [row["reward"] for row in lines if row["phase"] == "eval"]


def test_runs_of_one_name_get_labels_that_tell_them_apart(make_pipeline):
    first, second = make_pipeline("a"), make_pipeline("b")
    (group,) = compared(first / "ppo", second / "ppo")
    assert [entry.label for entry in group.entries] == ["a/ppo", "b/ppo"]


def test_many_runs_differ_in_colour_or_dash(make_lm):
    (group,) = compared(*(make_lm(f"run{index}", steps=10) for index in range(12)))
    assert len({(entry.colour, entry.dash) for entry in group.entries}) == 12


def test_names_of_runs_are_text(show, make_lm):
    name = "<b onclick=x>&"
    page = show(make_lm(name), make_lm("b"))
    assert not any(attrs.get("onclick") for _, attrs in page.elements)
    assert name in page.text
    assert page.figure("loss")["data"][0]["name"] == escape(name)
