"""Folders, sweeps, resuming, and how a command ends."""

import errno

import pytest


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def test_folder_is_made_and_left_to_the_run(jobs, tmp_path):
    assert jobs.train("run_dir=here") == 0
    assert jobs.train() == 0
    named, dated = jobs.seen
    assert named.folder == tmp_path / "here"
    assert dated.folder.parent == tmp_path / "runs"
    assert dated.folder.name.endswith("_still")
    assert named.settings.run_dir == named.config.run_dir == str(named.folder)
    assert [file.name for file in named.folder.iterdir()] == ["overrides.txt"]  # Hydra itself writes nothing


def test_two_runs_in_one_second_have_two_folders(jobs):
    assert [jobs.train() for _ in range(3)] == [0, 0, 0]
    assert len({composed.folder for composed in jobs.seen}) == 3


def test_sweep(jobs, capsys):
    assert jobs.train("-m", "reward=thirdparty,brevity", "seed=range(1,3)") == 0
    assert [(type(c.settings.reward).__name__, c.settings.seed) for c in jobs.seen] == [
        ("ThirdParty", 1),
        ("ThirdParty", 2),
        ("Brevity", 1),
        ("Brevity", 2),
    ]
    assert [composed.folder.name for composed in jobs.seen] == ["0", "1", "2", "3"]
    assert len({composed.folder.parent for composed in jobs.seen}) == 1
    assert jobs.seen[3].overrides[-2:] == ["reward=brevity", "seed=2"]
    assert "[3] rlhf train" in capsys.readouterr().out


def test_a_failed_job_is_told_and_the_sweep_goes_on(jobs, capsys):
    def act(composed):
        if composed.settings.seed == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    jobs.act = act
    assert jobs.train("-m", "seed=0,1,2", "run_dir=s") == 1
    assert [composed.settings.seed for composed in jobs.seen] == [0, 1, 2]
    assert lines(capsys.readouterr().err) == [
        "error: disk full: model.safetensors could not be written; free space and go on with: rlhf train resume=s/1"
    ]


def test_resume_repeats_the_overrides_and_adds_new_ones(jobs, tmp_path):
    assert jobs.train("run_dir=r", "reward=mixture", "+reward@reward.parts.a=brevity", "seed=3") == 0
    assert jobs.train("run_dir=other") == 0
    from rlhf_core.hydra_glue import launch

    assert launch("train", ["resume=r", "reward.parts.a.target=2"]) == 0
    first, _, again = jobs.seen
    assert again.resume
    assert again.folder == first.folder == tmp_path / "r"
    assert again.settings.seed == 3
    assert again.settings.reward.parts["a"].target == 2
    assert again.overrides == [*first.overrides, "reward.parts.a.target=2"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resume=nowhere"], "error: resume=nowhere: no such folder; give the run folder that rlhf train printed"),
        (["resume=empty"], "error: resume=empty: no run in there (overrides.txt is missing)"),
        (["resume=r", "-m"], "error: resume=r: cannot go with -m; resume the runs of a sweep one by one"),
        (["resume=p"], "error: resume=p: this is the folder of a pipeline; use rlhf pipeline resume=p"),
    ],
)
def test_nothing_to_resume(jobs, tmp_path, capsys, argv, message):
    from rlhf_core.hydra_glue import launch

    for name in ("empty", "r", "p"):
        (tmp_path / name).mkdir()
    (tmp_path / "r" / "overrides.txt").touch()
    (tmp_path / "p" / "pipeline.json").touch()
    assert launch("train", argv) == 1
    assert lines(capsys.readouterr().err) == [message]


def test_interrupt_says_how_to_go_on(jobs, capsys):
    def act(composed):
        raise KeyboardInterrupt

    jobs.act = act
    assert jobs.train("run_dir=r") == 130
    assert lines(capsys.readouterr().err) == ["stopped; go on with: rlhf train resume=r"]


def test_fault_of_the_program(jobs, capsys, monkeypatch):
    def act(composed):
        raise RuntimeError("first line\nsecond line")

    jobs.act = act
    assert jobs.train("run_dir=r") == 2
    (line,) = lines(capsys.readouterr().err)
    assert line.startswith("error: internal error: RuntimeError: first line second line (at ")
    monkeypatch.setenv("RLHF_TRACEBACK", "1")
    assert jobs.train("run_dir=q") == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "hydra" not in shown.partition("Traceback")[0]


def test_no_folder_is_left_where_the_job_never_began(jobs, tmp_path):
    assert jobs.train("reward=thirdparty", "+reward.foo=1", "run_dir=r") == 1
    assert not (tmp_path / "r").exists()
    assert jobs.seen == []
