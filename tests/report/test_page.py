"""The page of a finished pipeline: safe, self-contained, and true to the run folder."""

import base64
import hashlib
import json
import math

import pytest

from rlhf_core.report.text import duration, number


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def held_out(folder, name):
    return [row[name] for row in rows(folder / "metrics.jsonl") if row["phase"] == "eval" and name in row]


def test_nothing_is_loaded_from_elsewhere(page):
    loads = [(tag, attrs[name]) for tag, attrs in page.elements for name in ("src", "href", "data") if name in attrs]
    assert loads
    assert all(target.startswith("#") for _, target in loads)
    assert not any(tag in ("link", "iframe", "img", "object", "embed") for tag, _ in page.elements)


def test_only_the_pages_own_scripts_may_run(page):
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert len(hashes) == 2
    assert "default-src 'none'" in policy
    assert all(f"'sha256-{found}'" in policy for found in hashes)


def test_plotly_is_there_once(page):
    assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_each_stage_has_its_section_and_its_bar(page):
    assert [attrs["id"] for attrs in page.of_class("stage")] == [f"stage-{index}" for index in range(4)]
    widths = [float(attrs["style"].split("width: ")[1].rstrip("%")) for attrs in page.of_class("bar")]
    assert widths == pytest.approx([100 * part / 280.2 for part in (84.0, 33.6, 74.2, 88.4)], abs=0.01)


def test_head_says_where_and_how_long(page):
    for words in ("14 March 2026, 09:26", "torch 2.13.0", "python 3.11.9", "Seed 3", duration(280.2)):
        assert words in page.text


def test_summary_shows_each_headline(page, pipeline):
    for stage in ("pretrain", "sft", "reward_model", "ppo"):
        assert json.loads((pipeline / stage / "summary.json").read_text())["headline"] in page.text


def test_final_numbers_are_those_of_the_summary(page, pipeline):
    final = json.loads((pipeline / "ppo" / "summary.json").read_text())["metrics"]
    for name in ("reward", "kl", "win_rate", "win_rate_low", "judge/sentiment", "judge_start/sentiment"):
        assert number(final[name]) in page.text
    assert f"{100 * final['length_ratio']:.0f}\u00a0%" in "".join(page.words)


def test_loss_curve_holds_the_evaluations(page, pipeline):
    drawn = [trace["y"] for trace in page.figure("Loss")["data"] if trace["name"] == "held-out"]
    assert drawn == [held_out(pipeline / "pretrain", "loss")]


def test_accuracy_stands_beside_its_references(page):
    traces = [trace for trace in page.figure("Agreement with human raters")["data"] if "text" in trace]
    assert {trace["y"][0]: trace["x"][0] for trace in traces} == {
        "One rater against the rest": 0.9412,
        "Lexicon rule": 0.7253,
        "Reward model": 0.7134,
        "Length": 0.5217,
        "Chance": 0.5,
    }
    (interval,) = [trace["error_x"] for trace in traces if "error_x" in trace]
    assert 0.7134 + interval["array"][0] == pytest.approx(0.7288)
    assert 0.7134 - interval["arrayminus"][0] == pytest.approx(0.6981)


def test_over_optimisation_draws_reward_and_judges_on_kl(page, pipeline):
    paths = {trace["name"]: trace for trace in page.figure("Reward against KL")["data"] if "text" in trace}
    assert list(paths) == ["reward", "judge/sentiment", "judge/brevity"]
    for name, trace in paths.items():
        assert trace["x"] == held_out(pipeline / "ppo", "kl")
        assert trace["y"] == held_out(pipeline / "ppo", name)


def test_the_judges_peak_is_told_and_marked(page, pipeline):
    judged = held_out(pipeline / "ppo", "judge/sentiment")
    best = judged.index(max(judged))
    assert best < len(judged) - 1
    assert (
        f"sentiment is highest at step {6 * best} ({number(judged[best])}) and ends at {number(judged[-1])}"
        in page.text
    )
    lines = [shape["x0"] for shape in page.figure("Reward against KL")["layout"]["shapes"]]
    assert lines == [held_out(pipeline / "ppo", "kl")[best]]


def test_a_judge_that_never_falls_is_not_marked(show, make_ppo):
    page = show(make_ppo("ppo", decline=False))
    assert "sentiment is highest at the end" in page.text
    assert not page.figure("Reward against KL")["layout"].get("shapes")


def test_length_is_drawn_in_percent_of_the_start(page, pipeline):
    lengths = held_out(pipeline / "ppo", "length")
    figure = page.figure("Length drift")
    drawn = next(trace["y"] for trace in figure["data"] if trace.get("name") == "held-out")
    assert drawn == pytest.approx([100 * length / lengths[0] for length in lengths])
    band = next(shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect")
    assert (band["y0"], band["y1"]) == (60, 140)


def test_each_token_is_a_span_with_its_numbers(page, pipeline):
    samples = rows(pipeline / "ppo" / "samples.jsonl")
    final = [row for row in samples if row["step"] == samples[-1]["step"]]
    spans = page.of_class("tok")
    kls = [value for row in final for value in row["kl"]]
    assert len(spans) == len(kls)
    sizes = sorted(map(abs, kls))
    scale = sizes[round(0.98 * (len(sizes) - 1))]
    for span, kl in zip(spans, kls, strict=True):
        strength = min(100, round(100 * abs(kl) / scale))
        assert f"--k: {strength}%" in span["style"]
        assert ("kn" in span["class"].split()) == (kl < 0 and strength > 0)
        assert number(kl) in span["data-tip"]


def test_model_output_is_text_and_nothing_else(show, make_ppo):
    attack = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    folder = make_ppo("ppo")
    sample = {"step": 99, "prompt": attack, "response": attack, "baseline": attack, "scores": {attack: 1.0}}
    sample |= {"tokens": [attack], "kl": [0.5], "advantages": [0.1], "stop": "eos", "baseline_scores": {}}
    with (folder / "samples.jsonl").open("a") as file:
        file.write(json.dumps(sample) + "\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60, "phase": "eval", attack: 1.0, f"judge/{attack}": 2.0, "kl": 1.0}) + "\n")
    page = show(folder)
    assert len(page.scripts) == 2
    assert not any(tag == "img" for tag, _ in page.elements)
    assert page.text.count("alert(1)") >= 5
    assert not any(
        "<" in name for figure in page.figures for trace in figure["data"] for name in [trace.get("name", "")]
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.7134, "0.713"),
        (12.345, "12.35"),
        (-0.25, "\u22120.250"),
        (4096.0, "4,096"),
        (1.5e-5, "1.50e\u221205"),
        (math.nan, "\u2013"),
        (None, "\u2013"),
        (math.inf, "∞"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(1.25, "1.2 s"), (59.7, "1 min 0 s"), (280.2, "4 min 40 s"), (7265, "2 h 1 min")]
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown
