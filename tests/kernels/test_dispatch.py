"""Which backend computes an op."""

import json
import logging

import pytest
import torch

from rlhf_core import kernels
from rlhf_core.errors import UserError
from rlhf_core.kernels import dispatch, extension
from rlhf_core.kernels.dispatch import Implementation, Op


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Op:
    """An op of the tests' own that says who computed it."""
    for name in ("_ops", "_used"):
        monkeypatch.setattr(dispatch, name, dict(getattr(dispatch, name)))
    monkeypatch.setattr(dispatch, "_logged", set())
    return Op("double", lambda x: ("eager", x * 2))


X = torch.ones(2)


def fast(**options: object) -> Implementation:
    return Implementation(lambda x: ("cpu", x * 2), **options)


def test_auto_takes_the_fastest_that_can(double: Op) -> None:
    assert double(None, X, X)[0] == "eager"
    double.add("cpu", fast())
    assert double(None, X, X)[0] == "cpu"
    assert dispatch.used()["double"]["backend"] == "cpu"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"unavailable": "no compiler"}, "no compiler"),
        ({"dtypes": (torch.float64,)}, "float32"),
        ({"devices": ("cuda",)}, "cuda"),
        ({"refuses": lambda x: "only three rows"}, "only three rows"),
    ],
)
def test_a_fallback_is_logged_once_and_a_forced_backend_raises(
    double: Op, options: dict, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    double.add("cpu", fast(**options))
    with caplog.at_level(logging.WARNING, "rlhf_core.kernels"):
        assert double(None, X, X)[0] == double(None, X, X)[0] == "eager"
    assert [record.getMessage() for record in caplog.records if reason in record.getMessage()] == caplog.messages
    assert len(caplog.messages) == (0 if "devices" in options else 1)  # one for other devices is no fallback
    assert reason in dispatch.used()["double"]["why_not_faster"]
    with pytest.raises(ValueError, match=f"backend=cpu cannot compute double.*{reason}"):
        double("cpu", X, X)


def test_settings_and_who_goes_first(double: Op) -> None:
    double.add("cpu", fast())
    kernels.set_backend("eager")
    assert double(None, X, X)[0] == "eager"
    kernels.set_backend("eager", per_op={"double": "cpu"})
    assert double(None, X, X)[0] == "cpu"
    assert double("eager", X, X)[0] == "eager"
    kernels.set_backend("triton")  # of all ops; this one has none
    assert double(None, X, X)[0] == "cpu"
    kernels.set_backend(per_op={"double": "triton"})
    with pytest.raises(ValueError, match="backend=triton cannot compute double: not in this release"):
        double(None, X, X)


def test_unknown_names_are_one_line_for_people() -> None:
    with pytest.raises(UserError, match=r"no backend 'egaer'.*did you mean eager"):
        kernels.set_backend("egaer")
    with pytest.raises(UserError, match=r"no op 'shaped_gea'.*did you mean shaped_gae"):
        kernels.set_backend(per_op={"shaped_gea": "cpu"})
    with pytest.raises(ValueError, match="no backend 'gpu'"):
        kernels.ranking_loss(X, torch.tensor([0, 2], dtype=torch.int32), X, backend="gpu")


def test_status_has_a_row_an_op_and_backend() -> None:
    rows = kernels.status()
    ops = {row["op"] for row in rows}
    assert {
        "shaped_gae",
        "ppo_loss",
        "grpo_loss",
        "token_logprobs",
        "logprobs_from_logits",
        "linear_policy_loss",
    } <= ops
    assert {"attention", "decode_attention", "ranking_loss", "preference_loss"} <= ops
    assert len(rows) == 4 * len(ops)
    assert all(row["available"] != bool(row["reason"]) for row in rows)
    assert all(row["available"] for row in rows if row["backend"] == "eager")
    json.dumps([rows, kernels.used()])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "not compiled; install with"),
        ("not json", "not compiled; install with"),
        ({"reason": "no C++ compiler", "torch": None}, "not compiled: no C++ compiler"),
        ({"reason": None, "torch": "1.13.0"}, "compiled against torch 1.13.0, running"),
    ],
)
def test_why_the_extension_is_not_here(record, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    if record is not None:
        (tmp_path / "_build.json").write_text(record if isinstance(record, str) else json.dumps(record))
    monkeypatch.setattr(extension, "RECORD", tmp_path / "_build.json")
    assert extension.why_not.__wrapped__().startswith(reason)


def test_an_extension_that_does_not_load_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "_build.json").write_text(json.dumps({"reason": None, "torch": torch.__version__}))
    monkeypatch.setattr(extension, "RECORD", tmp_path / "_build.json")

    def fail(name: str) -> None:
        raise ImportError("undefined symbol:\n _ZN2at")

    monkeypatch.setattr(extension, "import_module", fail)
    assert extension.why_not.__wrapped__() == "cannot be loaded: undefined symbol: _ZN2at"
