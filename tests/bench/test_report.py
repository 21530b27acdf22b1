"""``rlhf bench report`` and ``compare``: what was measured comes out again, and a regression is an exit code."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_core.bench.results import Results, Row, read

MACHINE = {
    "device": "Model <7>", "device_type": "cpu", "threads": 2, "driver": None, "commit": "abc",
    "versions": {"rlhf_core": "0.1", "torch": "2.13", "triton": None},
}  # fmt: skip


def row(impl: str, kind: str, median: float, speedup: float | None, sequences: int = 64) -> Row:
    return Row(
        "ppo_loss", f"{sequences}x512", "full", "float32", "cpu", "full", impl, kind, tokens=512 * sequences,
        median_ms=median, p20_ms=median * 0.9, p80_ms=median * 1.1, best_ms=median * 0.8, repetitions=9, first_ms=3.0,
        speedup=speedup, speedup_best=speedup, peak_bytes=2**20, bytes=33 * 32768, rate=1e9, roof=1e10, roof_share=0.1,
        dram_share=0.2, error=1e-7, eager_error=2e-7, launches=4, times_ms=[median],
    )  # fmt: skip


def save(path: Path, *rows: Row) -> str:
    absent = [{"op": "ppo_loss", "impl": "cuda", "reason": "needs a CUDA device"}]
    Results(MACHINE, "2026-01-31T00:00:00+00:00", {}, {}, list(rows), absent).save(path)
    return str(path)


@pytest.fixture
def rows() -> list[Row]:
    failed = replace(row("mine", "peer", 1.0, None), status="failed", reason="loss is off by 1e-3", median_ms=None)
    return [
        row("eager", "baseline", 2.0, 1.0),
        row("cpu", "ours", 0.25, 8.0),
        failed,
        row("eager", "baseline", 20.0, 1.0, sequences=512),
        row("cpu", "ours", 4.0, 5.0, sequences=512),
    ]


def test_a_file_gives_back_what_was_saved(rows, tmp_path):
    assert read(Path(save(tmp_path / "r.json", *rows))).rows == rows


def test_markdown_has_a_row_each_and_marks_ours(rows, tmp_path, bench):
    done = bench("report", save(tmp_path / "r.json", *rows), "--format", "md")
    assert done.code == 0
    lines = [line for line in done.out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert "| 64x512, float32, full | eager | 2 (1.8–2.2) |" in done.out
    assert "|  | **cpu** | 0.25 (0.225–0.275) |" in done.out and "| 8× |" in done.out
    assert "FAILED 64x512: loss is off by 1e-3" in done.out and "NOISY" not in done.out
    assert "cuda (needs a CUDA device)" in done.out and "commit abc" in done.out


def test_a_busy_machine_is_told(rows, tmp_path, bench):
    file = save(tmp_path / "r.json", rows[0], replace(rows[1], noise=5.0))
    assert "NOISY, the machine was busy: 64x512." in bench("report", file).out
    bench("report", file, "--format", "html")
    assert "64x512 (noisy: the machine was busy)" in (tmp_path / "r.html").read_text()


def test_csv_has_every_number(rows, tmp_path, bench):
    files = [save(tmp_path / "a.json", *rows), save(tmp_path / "b.json", rows[0])]
    done = bench("report", *files, "--format", "csv", "-o", str(tmp_path / "deep" / "all.csv"))
    assert done.code == 0
    found = list(csv.DictReader(io.StringIO((tmp_path / "deep" / "all.csv").read_text())))
    assert len(found) == len(rows) + 1
    assert [float(line["median_ms"]) for line in found if line["impl"] == "cpu"] == [0.25, 4.0]
    assert found[0]["machine"] == "Model <7>" and "times_ms" not in found[0]


def test_html_is_one_file_with_three_plots_an_op(rows, tmp_path, bench):
    file = save(tmp_path / "r.json", *rows)
    done = bench("report", file, "--format", "html")
    assert done.code == 0 and done.out.strip() == str(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    figures = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    assert len(figures) == 3
    assert all(figure["layout"][axis]["type"] == "log" for figure in figures for axis in ("xaxis", "yaxis"))
    times = {trace["name"]: trace for trace in figures[0]["data"]}
    assert times["cpu"]["x"] == [32768, 262144] and times["cpu"]["y"] == [0.25, 4.0]
    assert "roof" in {trace.get("name") for trace in figures[2]["data"]}
    shown = page.partition("<main>")[2].partition("</main>")[0]
    assert not re.search(r'(src|href)="http', shown) and "Model &lt;7&gt;" in shown and "Model <7>" not in shown
    assert "loss is off by 1e-3" in shown and "512x512" in shown


@pytest.mark.parametrize(
    "content", ["", "[]", '{"rows": []}', '{"format": 0, "rows": []}', '{"format": 1, "rows": [{}]}']
)
def test_what_is_no_results_file_is_one_line(content, tmp_path, bench):
    (tmp_path / "r.json").write_text(content)
    done = bench("report", str(tmp_path / "r.json"))
    assert done.code == 1
    assert str(tmp_path / "r.json") in done.err and done.err.count("\n") == 1


def test_a_file_that_cannot_be_written_is_one_line(rows, tmp_path, bench):
    (tmp_path / "file").write_text("")
    done = bench("report", save(tmp_path / "r.json", *rows), "-o", str(tmp_path / "file" / "x.md"))
    assert done.code == 1 and "cannot be written" in done.err


def compared(bench, tmp_path, before, after, *words):
    files = save(tmp_path / "a.json", *before), save(tmp_path / "b.json", *after)
    return bench("compare", *files, *words)


def test_the_same_run_is_no_slower_than_itself(rows, tmp_path, bench):
    done = compared(bench, tmp_path, rows, rows, "--fail-over", "0%")
    assert done.code == 0 and "none of ours got slower" in done.out


def test_ours_slower_in_units_of_eager_fails_and_is_named(rows, tmp_path, bench):
    slower = [rows[0], replace(rows[1], median_ms=0.3, speedup=2 / 0.3), *rows[2:]]
    done = compared(bench, tmp_path, rows, slower, "--fail-over", "10%")
    assert done.code == 1
    assert "SLOWER: ppo_loss 64x512 float32 cpu full cpu: 1.2×" in done.out
    assert compared(bench, tmp_path, rows, slower, "--fail-over", "25%").code == 0
    assert compared(bench, tmp_path, rows, slower).code == 1  # 10 % is the default


def test_a_machine_twice_as_slow_is_no_regression(rows, tmp_path, bench):
    slower = [replace(one, median_ms=one.median_ms and 2 * one.median_ms) for one in rows]
    done = compared(bench, tmp_path, rows, slower)
    assert done.code == 0
    line = next(line for line in done.out.splitlines() if line.startswith("ppo_loss 64x512 float32 cpu full cpu"))
    assert line.split()[-2:] == ["2", "1"]  # both ratios are shown


def test_without_eager_the_plain_ratio_counts(tmp_path, bench):
    before, after = row("cpu", "ours", 1.0, None), row("cpu", "ours", 1.5, None)
    assert compared(bench, tmp_path, [before], [after]).code == 1


def test_a_baseline_or_peer_that_is_slower_does_not_fail(rows, tmp_path, bench):
    before, after = row("liger", "peer", 1.0, 2.0), row("liger", "peer", 9.0, 0.2)
    assert compared(bench, tmp_path, [rows[0], before], [rows[0], after]).code == 0


def test_ours_that_is_wrong_now_fails(rows, tmp_path, bench):
    wrong = replace(rows[1], status="failed", reason="loss is off", median_ms=None, speedup=None)
    done = compared(bench, tmp_path, rows, [rows[0], wrong, *rows[2:]])
    assert done.code == 1 and "WRONG NOW: ppo_loss 64x512 float32 cpu full cpu: loss is off" in done.out


def test_runs_without_a_common_row_cannot_be_compared(rows, tmp_path, bench):
    done = compared(bench, tmp_path, rows[:2], rows[3:])
    assert done.code == 1 and "no row in common" in done.err


@pytest.mark.parametrize("limit", ["much", "-1%", "nan%"])
def test_a_limit_that_is_no_percentage_is_told(limit, rows, tmp_path, bench):
    done = compared(bench, tmp_path, rows, rows, f"--fail-over={limit}")
    assert done.code == 1 and f"--fail-over {limit}: expected a percentage" in done.err


def test_what_sharing_a_prompt_gave_is_told_beside_what_it_saves(tmp_path, bench):
    shared = replace(row("cpu", "ours", 2.0, 5.0), op="attention_shared", copied=4.0, speedup_copies=3.7)
    copies = replace(row("copies", "baseline", 7.4, 1.3), op="attention_shared", copied=4.0, speedup_copies=1.0)
    done = bench("report", save(tmp_path / "r.json", copies, shared))
    assert "`cpu` 64x512: 3.7× copies of the prompt, 92 % of the 4× work saved." in done.out
    assert "`copies` 64x512" not in done.out
