"""``rlhf conformance``: whose, which, what is printed and written, the exit code, and one line for bad input."""

import json
import re
from pathlib import Path

import pytest

from rlhf_core.cli import main
from rlhf_core.conformance.adapters import ours
from rlhf_core.conformance.checks import CHECKS, GROUPS
from rlhf_core.conformance.command import parser
from rlhf_core.conformance.implementations import ADAPTERS
from rlhf_core.help import help_text

MINE = """
import torch

unsupported = {"kl.kind=k2"}

def gae(rewards, values, mask, gamma, lam):
    return rewards, rewards + values

def kl(logprobs, ref_logprobs, kind):
    return logprobs - ref_logprobs

def policy_loss(**arguments):
    raise NotImplementedError("ratios are not for me")

def value_loss(values, old_values, returns, mask, clip):
    raise KeyError("no critic")

class Estimators:
    whiten = None
    kl = staticmethod(kl)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with somebody's implementation, named so that no other test has imported it."""
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return name


def run(capsys, *words):
    code = main(["conformance", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def row(text: str, check: str) -> list[str]:
    """The cells of a check."""
    (line,) = re.findall(rf"^  {re.escape(check)}\*?  .*$", text, re.MULTILINE)
    return re.split(r"\s{2,}", line.strip())[1:]


def test_ours(capsys):
    code, out, err = run(capsys, "--impl", "ours.eager")
    assert (code, err) == (0, "")
    assert f"ours.eager: {len(CHECKS)} agrees" in out
    assert all(re.search(rf"^{group} *$", out, re.MULTILINE) for group in GROUPS)
    assert "DIFFERS" not in out


def test_each_disagreement_has_all_that_a_report_needs(here, capsys):
    code, out, _ = run(capsys, "--impl", f"{here}:", "--impl", "ours.eager", "--check", "gae.gaps")
    assert code == 0
    assert row(out, "gaps") == ["DIFFERS 0.56", "agrees"]
    block = out[out.index("gae.gaps: ") :]
    assert "[CORRECTNESS 6]" in block
    assert "rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)" in block
    assert "mask = torch.tensor([[True, True, False, False, True]])" in block
    assert re.search(r"expected +\[\[0.43675, 0.565, ·, ·, 0.7\]\]", block)
    assert re.search(rf"{here}: +\[\[0, 0, 0, 0, 1\]\]", block)


def test_what_is_not_offered_is_no_fault(here, capsys):
    code, out, _ = run(capsys, "--impl", f"{here}:", "--strict", "--check", "gae.score", "--check", "kl.k2",
                       "--check", "policy_loss", "--check", "logprobs", "--check", "kl.k1")  # fmt: skip
    assert code == 0
    assert [row(out, name) for name in ("score", "k2", "ratio_one", "values", "k1")] == [
        *[["not offered"]] * 4,
        ["agrees"],
    ]
    for reason in ("gae takes no scores", "kl.kind=k2 is not supported", "ratios are not for me", "no logprobs"):
        assert f"): {reason}" in out


def test_what_raises_disagrees(here, capsys):
    words = ["--impl", f"{here}:", "--check", "value_loss.table"]
    code, out, _ = run(capsys, *words)
    assert (code, row(out, "table")) == (0, ["raises"])
    assert "raises: KeyError: 'no critic'" in out
    assert run(capsys, *words, "--strict")[0] == 1


def test_an_attribute_of_a_module_here(here, capsys):
    code, out, _ = run(capsys, "--impl", f"{here}:Estimators", "--check", "kl.k1", "--check", "whiten.population")
    assert (code, row(out, "k1"), row(out, "population")) == (0, ["agrees"], ["not offered"])


def test_float32_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "narrow_kernels.py").write_text("""
import torch

class Narrow:
    def kl(self, logprobs, ref_logprobs, kind):
        assert logprobs.dtype == torch.float32, "a kernel of float32"
        return (logprobs - ref_logprobs) * self.factor

    factor = 1 + 1e-5

class Declared(Narrow):
    float32 = True

class Wrong(Declared):
    factor = 1 + 1e-2

narrow, declared, wrong = Narrow(), Declared(), Wrong()
""")
    monkeypatch.chdir(tmp_path)
    names = [f"narrow_kernels:{name}" for name in ("narrow", "declared", "wrong")]
    _, out, _ = run(capsys, *(word for name in names for word in ("--impl", name)), "--check", "kl.k1")
    assert row(out, "k1") == ["raises", "agrees", "DIFFERS 0.0098"]


def test_ours_has_to_agree(monkeypatch, capsys):
    monkeypatch.setattr(ours.Ours, "group_advantages", lambda self, scores, group, kind="grpo": scores)
    assert run(capsys, "--impl", "ours.eager", "--check", "group_advantages")[0] == 1
    assert run(capsys, "--impl", "ours.eager", "--check", "gae")[0] == 0


def test_json_has_everything(here, capsys):
    assert run(capsys, "--impl", "ours.eager", "--impl", f"{here}:", "--json", "out.json")[0] == 0
    text = Path("out.json").read_text(encoding="utf-8")
    told = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    assert [one["name"] for one in told["implementations"]] == ["ours.eager", f"{here}:"]
    assert [check["id"] for check in told["checks"]] == [check.id for check in CHECKS]
    (gaps,) = [check for check in told["checks"] if check["id"] == "gae.gaps"]
    assert gaps["inputs"]["values"] == [[0.5, 0.4, 9.0, 9.0, 0.3]]
    assert gaps["expected"]["advantages"][0][2] is None
    assert [result["status"] for result in gaps["results"]] == ["agrees", "differs"]
    assert gaps["results"][1]["came"]["advantages"] == [[0, 0, 0, 0, 1]]


def test_a_golden_vector_alone(capsys):
    code, out, _ = run(capsys, "--show", "gae.gaps", "--show", "cispo")
    assert code == 0
    assert out.startswith("gae.gaps  [CORRECTNESS 6]")
    assert "values = torch.tensor([[0.5, 0.4, 9.0, 9.0, 0.3]], dtype=torch.float64)" in out
    assert "cispo.surrogate" in out


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_what_is_printed_makes_the_same_inputs(check):
    import torch

    from rlhf_core.conformance.golden import inputs

    made = {"torch": torch, "nan": float("nan"), "inf": float("inf")}
    exec("\n".join(inputs(check)), made)
    for name, value in check.arguments().items():
        for one, other in zip(*(x if isinstance(x, list) else [x] for x in (made[name], value)), strict=True):
            if isinstance(other, torch.Tensor):
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
            else:
                assert one == other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--impl", "our"], "--impl our: no such implementation; there are ours, .*Did you mean ours\\?"),
        (["--impl", "no_such:thing"], "--impl no_such:thing: cannot be imported: ModuleNotFoundError: .*"),
        (["--impl", "rlhf_core.conformance.adapters.ours:Our"], ".* has no Our. Did you mean Ours\\?"),
        (["--impl", "json:dumps"], "--impl json:dumps: offers none of gae, .*"),
        (["--check", "gea"], "gea: no such check. Did you mean gae\\?"),
        (["--check", "gae.gap"], "gae.gap: no such check. Did you mean gae.gaps\\?"),
        (["--check", "?"], "\\?: no such check; groups: gae, whiten, .*"),
        (["--show", "kl.k4"], "kl.k4: no such check. Did you mean kl.k\\d\\?"),
        (["--impl", "ours", "--json", "no/such/folder.json"], "--json no/such/folder.json: cannot be written; .*"),
        (["--fast"], "conformance: unrecognized arguments: --fast; rlhf conformance --help says more"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys):
    code, out, err = run(capsys, *words)
    assert (code, out) == (1, "")
    assert re.fullmatch(f"error: {message}\n", err)


def test_an_absent_peer_says_so(monkeypatch, capsys):
    def absent(variant):
        raise NotImplementedError("not installed (pip install trl)")

    monkeypatch.setattr(ADAPTERS["trl"], "implementation", absent)
    code, _, err = run(capsys, "--impl", "trl")
    assert (code, err) == (1, "error: --impl trl: not installed (pip install trl)\n")
    code, out, _ = run(capsys, "--check", "gae.gaps")
    assert code == 0
    assert "trl" not in out.splitlines()[0].split()


def test_help_names_the_real_options():
    real = {option for action in parser()._actions for option in action.option_strings}
    text = help_text("conformance")
    assert real == set(re.findall(r"--[a-z]+", text))
    assert all(name in text for name in ADAPTERS)
