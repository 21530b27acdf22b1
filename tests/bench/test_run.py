"""``rlhf bench run``: rows, the gate, and third parties."""

import pytest

from rlhf_core.bench.results import read

QUICK = ("reps=3", "seconds=0.01", "threads=1")
RIGHT = 'return {"loss": loss}'


def rows_of(path):
    return {row.impl: row for row in read(path).rows}


def test_a_run_writes_what_it_measured(bench, tmp_path):
    out = tmp_path / "deep" / "results.json"
    words = ("op=shaped_gae,ranking_loss", "impl=eager,vectorised,definition,triton", "mode=fwd,bwd,full")
    done = bench("run", *words, "shape=9x5,4x30", "lengths=ragged", *QUICK, f"out={out}")
    assert done.code == 0, done.err
    results = read(out)
    assert {(row.op, row.mode) for row in results.rows} == {
        ("shaped_gae", "fwd"), ("ranking_loss", "fwd"), ("ranking_loss", "bwd"), ("ranking_loss", "full"),
    }  # fmt: skip
    assert len(results.rows) == 3 * (2 + 3 * 2)
    for row in results.rows:
        assert row.status == "ok" and row.repetitions == len(row.times_ms) == 3
        assert row.best_ms <= row.p20_ms <= row.median_ms <= row.p80_ms
        assert row.error <= 1e-5 and row.launches > 0 and row.peak_bytes > 0
        assert row.rate == pytest.approx(row.bytes / row.median_ms * 1e3)
        assert row.roof_share == pytest.approx(row.rate / row.roof)
        assert row.speedup == 1 if row.impl == "eager" else row.speedup > 0
    assert {"device", "cpu", "threads", "versions", "commit", "driver"} <= set(results.machine)
    assert results.machine["threads"] == 1 and results.roofs["float32"]["dram"] > 0
    assert [entry for entry in results.absent if entry["impl"] == "triton"]
    assert "ranking_loss 4x30 ragged float32 full" in done.out and "not measured" in done.out


def test_a_third_party_takes_part(bench, third_party, tmp_path):
    third_party(mine=RIGHT)
    done = bench("run", "op=preference_loss", "shape=16", "impl=eager,mine", *QUICK, f"out={tmp_path / 'r.json'}")
    assert done.code == 0
    row = rows_of(tmp_path / "r.json")["mine"]
    assert row.status == "ok" and row.kind == "peer" and row.speedup > 0
    assert "mine" in bench("list").out


def test_a_third_party_that_is_absent_says_why(bench, third_party):
    third_party(why_not="not installed", mine=RIGHT)
    done = bench("run", "op=preference_loss", "shape=16", "impl=eager,mine", *QUICK)
    assert done.code == 0
    assert "mine          not installed (preference_loss)" in done.out
    assert "mine         not installed" in bench("list").out


WRONG = {
    "value": 'return {"loss": loss * 1.001}',
    "gradient": 'return {"loss": loss.detach() + 2 * (loss - loss.detach())}',
    "nothing": "return {}",
    "infinite": 'return {"loss": loss * float("nan")}',
    "shape": 'return {"loss": loss, "accuracy": (h > 0).float()}',
    "unknown": 'return {"loss": loss, "acuracy": loss.detach()}',
    "detached": 'return {"loss": loss.detach()}',
    "raising": 'raise RuntimeError("no luck")',
}


def test_what_is_wrong_is_not_timed_and_the_others_go_on(bench, third_party, tmp_path):
    third_party(**WRONG)
    names = ",".join(("eager", *WRONG))
    done = bench("run", "op=preference_loss", "shape=16", f"impl={names}", *QUICK, f"out={tmp_path / 'r.json'}")
    assert done.code == 0  # a peer's mistake is no failure of ours
    found = rows_of(tmp_path / "r.json")
    assert found.pop("eager").status == "ok"
    for name, row in found.items():
        assert row.status == "failed" and row.median_ms is None and row.repetitions == 0, name
        assert row.reason and f"{name:14}FAILED: " in done.out
    assert "loss is off by" in found["value"].reason
    assert "grad_chosen is off by" in found["gradient"].reason
    assert "accuracy has shape [16]" in found["shape"].reason
    assert "acuracy, which is no output" in found["unknown"].reason
    assert found["raising"].reason == "RuntimeError: no luck"


def test_a_wrong_one_of_ours_is_a_failure(bench, third_party):
    third_party(kind="ours", mine=WRONG["value"])
    assert bench("run", "op=preference_loss", "shape=16", "impl=eager,mine", *QUICK).code == 1


def test_what_only_a_framework_computes_is_not_compared(bench, third_party, tmp_path):
    third_party(mine='return {"loss": loss, "_own": loss.detach() * 7}')
    bench("run", "op=preference_loss", "shape=16", "impl=mine", *QUICK, f"out={tmp_path / 'r.json'}")
    row = rows_of(tmp_path / "r.json")["mine"]
    assert row.status == "ok" and row.speedup is None  # there was no eager in this run


def test_a_broken_plugin_is_named(bench, third_party):
    third_party(mine="return {")
    assert "mine" in bench("list").out
    done = bench("run", "op=preference_loss", "shape=16", "impl=mine", *QUICK)
    assert done.code == 1 and "impl=mine: cannot be imported" in done.err
