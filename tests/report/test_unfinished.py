"""A run in progress, a killed one, and a folder that is none."""

import json

import pytest

from rlhf_core.errors import UserError
from rlhf_core.report import main
from rlhf_core.report.read import read, read_run

FILES = ["metrics.jsonl", "timing.jsonl", "samples.jsonl", "summary.json", "config.yaml", "plugins.json", "env.json"]


@pytest.mark.parametrize("missing", [*FILES, "overrides.txt", "log.txt"])
def test_a_page_without_this_file(show, make_ppo, missing):
    folder = make_ppo("ppo")
    (folder / missing).unlink()
    assert "Reward against KL" in show(folder).text


def test_a_page_with_every_file_damaged_names_them(show, make_ppo):
    folder = make_ppo("ppo")
    for name in FILES:
        (folder / name).write_text('{"step": [}\n\n]: {{\n')
    page = show(folder)
    assert len(page.of_class("note")) == len(FILES)
    assert all(name in page.text for name in FILES)


@pytest.mark.parametrize("algorithm", ["lm", "reward_model", "ppo", "somebody_elses"])
def test_a_run_that_has_just_begun(show, tmp_path, algorithm):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "plugins.json").write_text(json.dumps([{"kind": "algorithm", "name": algorithm}]))
    page = show(tmp_path)
    assert not page.figures
    assert page.of_class("empty")
    assert "running" in page.text


def test_stages_that_have_not_begun(show, make_pipeline):
    folder = make_pipeline("p")
    content = json.loads((folder / "pipeline.json").read_text())
    content["stages"][3] |= {"status": "pending", "seconds": None, "folder": "later"}
    (folder / "pipeline.json").write_text(json.dumps(content))
    page = show(folder)
    assert "Not started." in page.text
    assert "This stage has not written anything yet." in page.text


def test_no_judges_no_verdict(show, make_ppo):
    folder = make_ppo("ppo")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in row.items() if "judge" not in name} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert "No independent judge was run" in show(folder).text


def test_the_last_line_cut_short_is_left_out(make_ppo):
    folder = make_ppo("ppo")
    whole = read_run(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "phase": "train", "rew')
    cut = read_run(folder)
    assert cut.train == whole.train
    assert cut.notes == []


def test_a_step_written_again_counts_as_last_written(tmp_path):
    lines = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 4.0},
        {"step": 1, "loss": 3.0},
        {"step": 3, "loss": float("nan")},
    ]
    text = "".join(json.dumps(line | {"phase": "train"}) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    series = read_run(tmp_path).train["loss"]
    assert (series.steps, series.values) == ([1, 2, 3], [3.0, 4.0, None])
    assert series.last == 4.0


def test_an_unfinished_run_shows_its_last_evaluation(make_ppo):
    folder = make_ppo("ppo")
    finished = read_run(folder)
    (folder / "summary.json").unlink()
    run = read_run(folder)
    assert not run.finished
    assert run.algorithm == "ppo"
    assert run.final["reward"] == finished.final["reward"]
    assert run.seconds == pytest.approx(88.4)


def test_samples_are_read_whole(make_ppo):
    folder = make_ppo("ppo")
    first = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    sample = read_run(folder).samples[0]
    assert vars(sample) == first


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        main([str(tmp_path / "nowhere")])


def test_an_unreadable_pipeline(tmp_path):
    (tmp_path / "pipeline.json").write_text("{")
    with pytest.raises(UserError, match=r"pipeline\.json cannot be read"):
        read(tmp_path)


def test_a_page_that_cannot_be_written(make_lm):
    folder = make_lm("lm")
    (folder / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        main([str(folder)])
    assert not list(folder.glob(".*"))
