"""``rlhf explain``: what it prints, and the page made of the same texts."""

import io
import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_core.cli import main
from rlhf_core.explain import chosen_groups
from rlhf_core.explain.metric import Metric
from rlhf_core.explain.metrics import GROUPS, find, names
from rlhf_core.explain.page import page
from rlhf_core.explain.terminal import show

ALL = [metric for group in GROUPS for metric in group.metrics]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.title)
def test_every_field_says_something_in_one_line(metric):
    for field in fields(Metric):
        told = getattr(metric, field.name)
        assert told or field.name == "falling"
        assert isinstance(told, tuple) or "\n" not in told
        assert isinstance(told, tuple) or told == told.strip()


def test_a_name_has_one_meaning_a_subject():
    for group in GROUPS:
        own = [name for metric in group.metrics for name in metric.names]
        assert len(own) == len(set(own))


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("kl", "kl"),
        ("reward/quality", "reward/NAME"),
        ("reward_gain_sd/quality", "reward_gain_sd, reward_gain_sd/NAME"),
        ("judge/learned", "judge/NAME"),
        ("best_of_64/kl", "best_of_N/NAME"),
        ("best_of_2/judge/sentiment", "best_of_N/NAME"),
        ("best_of_N/NAME", "best_of_N/NAME"),
        ("win_rate_low", "win_rate_low, win_rate_high"),
    ],
)
def test_patterns(name, title):
    assert [metric.title for _, metric in find(name)] == [title]


@pytest.mark.parametrize("name", ["k", "klx", "best_of_x/kl", "reward/", "judge", "NAME", ""])
def test_what_is_no_metric_is_not_explained(name):
    assert find(name) == []


def test_a_name_of_several_subjects_is_explained_for_each(capsys):
    assert main(["explain", "metrics", "loss"]) == 0
    text = capsys.readouterr().out
    assert [group.title for group in chosen_groups(["loss"])] == ["language model", "reward model", "preference"]
    assert all(group.title in text for group in chosen_groups(["loss"]))
    assert "perplexity\n" not in text


def test_all_is_shown_without_names(capsys):
    assert main(["explain", "metrics"]) == 0
    text = capsys.readouterr().out
    assert all(metric.formula in text and metric.action in text for metric in ALL)


def test_contents_name_every_metric(capsys):
    assert main(["explain"]) == 0
    text = capsys.readouterr().out
    assert "rlhf explain metrics" in text
    assert all(name in text for name in names())


def test_json(capsys):
    assert main(["explain", "metrics", "clip_frac", "reward/quality", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["group"], row["names"]) for row in rows] == [
        ("sampled answers", ["reward/NAME"]),
        ("policy gradient", ["clip_frac"]),
    ]


@pytest.mark.parametrize("width", [60, 200])
def test_on_a_terminal_it_is_wrapped_to_the_width(width):
    file = io.StringIO()
    show(GROUPS, Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    words = " ".join(lines).split()
    for metric in ALL:
        assert set(metric.title.split()) <= set(words)
        assert metric.action.split()[-1] in words
    assert "evaluator=[perplexity]" in words  # brackets are text, not markup
    assert max(map(len, lines)) <= min(width, 120)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mterics"], "mterics: no such topic; there are: metrics. Did you mean metrics?"),
        (["kl"], "kl: no such topic; there are: metrics; say rlhf explain metrics kl"),
        (
            ["metrics", "clip_fraction"],
            "clip_fraction: no such metric; rlhf explain lists them. Did you mean clip_frac?",
        ),
        (["metrics", "--jsn"], "--jsn: no such option of rlhf explain; there is --json"),
    ],
)
def test_mistakes(words, message, capsys):
    assert main(["explain", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {message}\n"


def test_it_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; from rlhf_core.cli import main; main(['explain', 'metrics']);"
        "print({'torch', 'rich', 'numpy', 'hydra', 'rlhf_plugins'} & set(sys.modules))"
    )
    began = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"
    assert time.perf_counter() - began < 3  # 0.15 s on a machine that does nothing else


def test_the_page_is_made_of_these_texts():
    made = "python -m rlhf_core.explain.page > docs/metrics.md"
    assert (DOCS / "metrics.md").read_text(encoding="utf-8") == page() + "\n", f"out of date: {made}"
    assert made in page()
