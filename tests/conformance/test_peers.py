"""The peers' real code, where it is installed: what agreed and what differed when docs/conformance.md was written."""

import re
from pathlib import Path

import pytest

from rlhf_core.conformance.checks import CHECKS
from rlhf_core.conformance.implementations import ADAPTERS
from rlhf_core.conformance.run import ask

DIFFERS = {
    "trl": {
        "policy_loss.huge_ratio", "policy_loss.log_ratio_clamp", "policy_loss.empty_rows", "policy_loss.masked_nan",
        "preference_loss.orpo_lengths", "group_advantages.grpo", "logprobs.large_logits", "logprobs.bfloat16",
    },
    "trl.fused": {"logprobs.large_logits"},
    "torchrl": {
        "gae.masked_nan_padding", "whiten.masked_nan", "policy_loss.huge_ratio", "policy_loss.log_ratio_clamp",
        "policy_loss.empty_rows", "cispo.gradient", "cispo.gradient_low", "cispo.surrogate", "value_loss.masked_nan",
        "group_advantages.grpo", "logprobs.bfloat16",
    },
    "torchrl.vec": {"gae.lam_0", "gae.masked_nan_padding"},
}  # fmt: skip
OFFERED = {
    "trl": {"kl", "policy_loss", "sequence_ratio", "cispo", "ranking_loss", "preference_loss", "group_advantages",
            "logprobs"},
    "trl.fused": {"logprobs"},
    "torchrl": {"gae", "whiten", "kl", "policy_loss", "cispo", "value_loss", "group_advantages", "logprobs"},
    "torchrl.vec": {"gae"},
}  # fmt: skip
VERSIONS = {"trl": "1.16.", "trl.fused": "1.16.", "torchrl": "0.14.", "torchrl.vec": "0.14."}


def test_the_table_of_the_page():
    """Every check has its row, and says of each peer what the test below finds."""
    page = (Path(__file__).parents[2] / "docs/conformance.md").read_text(encoding="utf-8")
    (head,) = re.findall(r"^\| check \| ours \| (.*) \|$", page, re.MULTILINE)
    rows = re.findall(r"^\| `(\w+\.\w+)`( \*)? \| agrees \| (.*) \|$", page, re.MULTILINE)
    assert [(check, bool(star)) for check, star, _ in rows] == [(check.id, bool(check.choice)) for check in CHECKS]
    assert head.split(" | ") == list(DIFFERS)
    for column, variant in enumerate(DIFFERS):
        cells = {check: said.split(" | ")[column] for check, _, said in rows}
        assert {check for check, said in cells.items() if said.startswith("**")} == DIFFERS[variant]
        assert {check.partition(".")[0] for check, said in cells.items() if said != "–"} == OFFERED[variant]


@pytest.mark.filterwarnings("ignore")  # theirs, while they are imported
@pytest.mark.parametrize("variant", VERSIONS)
def test_what_the_page_says_of_a_peer(variant):
    try:
        implementation = ADAPTERS[variant].implementation(variant)
    except NotImplementedError as error:
        pytest.skip(f"{variant}: {error}")
    if not implementation.version.startswith(VERSIONS[variant]):
        pytest.skip(f"{variant}: made for {VERSIONS[variant]}x, this is {implementation.version}")
    results = [ask(implementation, check) for check in CHECKS]
    assert {result.check.id for result in results if result.wrong} == DIFFERS[variant]
    assert {result.check.group for result in results if result.status != "not offered"} == OFFERED[variant]
