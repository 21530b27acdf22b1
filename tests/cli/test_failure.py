"""One line for each way to fail, and the exit code that goes with it."""

import errno
from pathlib import Path

import pytest

from rlhf_core.errors import UserError
from rlhf_core.failure import explain, report, resume_command


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "known", "text", "code"),
    [
        (UserError("data.path: no\nfile"), "", "data.path: no file", 1),
        (chained(RuntimeError("wrapped"), UserError("the cause")), "", "the cause", 1),
        (FileNotFoundError(2, "No such file or directory", "x.json"), "", "x.json: No such file or directory", 1),
        (ValueError("seen by Hydra"), "our words", "our words", 1),
        (MemoryError(), "", "out of memory; lower trainer.microbatch_tokens, or the batch of the algorithm", 1),
        (KeyboardInterrupt(), "", "stopped; go on with: rlhf train resume=r", 130),
        (
            chained(RuntimeError("cannot save"), OSError(errno.ENOSPC, "No space left on device", "m.bin")),
            "",
            "disk full: m.bin could not be written; free space and go on with: rlhf train resume=r",
            1,
        ),
        (KeyError("x"), "", "internal error: KeyError: 'x'; RLHF_TRACEBACK=1 shows all", 2),
    ],
)
def test_line_and_code(error, known, text, code):
    assert explain(error, "rlhf train resume=r", known) == (text, code)


def test_traceback_only_when_asked_for(capsys, monkeypatch):
    for name in ("RLHF_TRACEBACK", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    assert report(UserError("no")) == 1
    assert capsys.readouterr().err == "error: no\n"
    monkeypatch.setenv("RLHF_TRACEBACK", "1")
    assert report(UserError("no")) == 1
    assert capsys.readouterr().err.startswith("rlhf_core.errors.UserError: no")


def test_resume_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resume_command("train", None) == ""
    assert resume_command("train", tmp_path / "r") == ""  # nothing was written: nothing to resume
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "overrides.txt").touch()
    assert resume_command("train", tmp_path / "r") == f"rlhf train resume={Path('r')}"
    monkeypatch.chdir("/")
    assert resume_command("pipeline", tmp_path / "r").startswith("rlhf pipeline resume=")
