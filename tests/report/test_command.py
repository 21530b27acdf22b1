"""`rlhf report` as a command, and what it imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_core.report
from rlhf_core.errors import UserError
from rlhf_core.report import main

SOURCES = sorted(Path(rlhf_core.report.__file__).parent.glob("*.py"))


def imports(path):
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    for node in tree:
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_the_page_lies_in_the_run_folder_and_its_path_is_printed(make_lm, capsys):
    folder = make_lm("lm")
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_output_is_where_one_says(make_lm, tmp_path):
    assert main([str(make_lm("lm")), "--output", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").is_file()


def test_a_comparison_lies_in_the_present_folder(make_lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multirun.yaml").write_text("{}")
    assert main([str(make_lm("a")), str(make_lm("b")), str(tmp_path / "multirun.yaml")]) == 0
    assert "2 runs compared" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_one_run_gives_the_same_page_twice(make_ppo):
    folder = make_ppo("ppo")
    pages = [main([str(folder)]) or (folder / "report.html").read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("words", [[], ["--outptu", "x"], ["run", "--output"]])
def test_wrong_words_are_told_in_one_line(words):
    with pytest.raises(UserError) as error:
        main(words)
    assert "\n" not in str(error.value)


def test_only_charts_knows_plotly():
    assert [path.name for path in SOURCES if "plotly" in imports(path)] == ["charts.py"]


def test_neither_torch_nor_the_training_loop_is_imported(make_lm):
    code = (
        "import sys; from rlhf_core.report import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'hydra', 'rlhf_core.trainer', 'rlhf_plugins'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(make_lm("lm"))], check=True, capture_output=True)
