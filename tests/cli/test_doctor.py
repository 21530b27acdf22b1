"""The doctor tries things, and lives where they fail."""

import json

from rlhf_core import doctor
from rlhf_core.cli import main


def test_page(capsys):
    main(["doctor"])
    page = capsys.readouterr().out
    for part in ("python", "torch", "hydra-core", "shaped_gae", "isa", "cache"):
        assert part in page


def test_facts(capsys):
    main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"]
    assert "error" not in facts["torch"]
    eager = [row for row in facts["kernels"]["rows"] if row["backend"] == "eager"]
    assert eager
    assert all(row["available"] for row in eager)
    assert facts["broken_plugins"] == {}


def test_it_survives_what_is_broken(monkeypatch, capsys):
    def broken():
        raise OSError("libtorch.so: cannot open")

    monkeypatch.setattr(doctor, "_torch", broken)
    assert main(["doctor"]) == 1
    assert "OSError: libtorch.so: cannot open" in capsys.readouterr().out


def test_one_line_an_op_and_one_a_reason():
    rows = [
        {"op": op, "backend": backend, "available": not reason, "reason": reason, "note": note}
        for op in ("gae", "loss")
        for backend, reason, note in (("cuda", "no GPU", "untried"), ("eager", "", ""))
    ]
    lines = doctor._kernel_lines(rows)
    assert [line.split() for line in lines[:2]] == [["gae", "eager"], ["loss", "eager"]]
    assert lines[2:] == ["cuda: no GPU  [gae, loss]", "cuda: untried  [gae, loss]"]
