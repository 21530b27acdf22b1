"""What ``rlhf bench step peer=…`` found, as rows, ratios and text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from math import sqrt
from statistics import fmean, median, pvariance
from typing import Any

from .shown import significant
from .step_side import Setting

SLACK = 0.02
"""of the mean length: by so much, and by chance, two sides may differ"""

NOISE = 1.5
"""times its best, the median of a step is no more on a machine of one's own"""

Rows = Sequence[Mapping[str, Any]]


def row(setting: Setting, step_ms: Sequence[float], lengths: Sequence[int], facts: Mapping[str, Any]) -> dict[str, Any]:
    """One setting of a side: what its steps took, and how many tokens its responses had."""
    return {
        **asdict(setting),
        "name": setting.name,
        "step_ms": step_ms,
        "median_ms": median(step_ms),
        "best_ms": min(step_ms),
        "responses": len(lengths),
        "tokens": sum(lengths),
        "mean_length": fmean(lengths) if lengths else 0.0,
        "length_variance": pvariance(lengths) if lengths else 0.0,
        **facts,
    }


def equal(rows: Rows, responses: int) -> bool:
    """Whether all have sampled so many responses, as long as the others' but for ``SLACK`` and four standard errors."""
    return all(one["responses"] == responses for one in rows) and all(
        abs(a["mean_length"] - b["mean_length"])
        <= SLACK * a["mean_length"] + 4 * sqrt((a["length_variance"] + b["length_variance"]) / responses)
        for a, b in combinations(rows, 2)
    )


def ratios(rows: Rows) -> list[dict[str, Any]]:
    """For each of ours: the least of the peer's medians through its median, and the same of the bests."""
    theirs = [one for one in rows if one["side"] != "ours"]
    keys = ("median_ms", "best_ms")
    least = {key: min(theirs, key=lambda one: float(one[key])) for key in keys} if theirs else {}
    return [
        {"ours": one["name"]}
        | {key.removesuffix("_ms"): peer[key] / one[key] for key, peer in least.items()}
        | {f"{key.removesuffix('_ms')}_of": peer["name"] for key, peer in least.items()}
        for one in rows
        if one["side"] == "ours" and theirs
    ]


def table(found: Mapping[str, Any]) -> list[str]:
    """The work, a line a setting, and the ratios."""
    lines = [*head(found), f"\n{'':6}{'setting':24}{'median ms':>11}{'best':>9}{'tokens a response':>20}"]
    for one in found["sides"]:
        times = f"{significant(one['median_ms']):>11}{significant(one['best_ms']):>9}"
        lines.append(f"{one['side']:6}{one['name']:24}{times}{one['mean_length']:>20.2f}")
    lines.append("")
    for ratio in found["ratios"]:
        numbers = f"{ratio['median']:.2f}× by medians, {ratio['best']:.2f}× by bests"
        lines.append(f"the peer's best / ours ({ratio['ours']}): {numbers}")
    if any(one["median_ms"] > NOISE * one["best_ms"] for one in found["sides"]):
        lines.append("NOISY: somebody else was using the machine; measure again")
    if not found["equal_work"]:
        lines.append("NOT EQUAL WORK: the sides sampled different numbers of responses or of tokens")
    return lines


def head(found: Mapping[str, Any]) -> list[str]:
    """Machine, versions and work."""
    machine, world = found["machine"], found["world"]
    packages = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers", "trl"))
    prompts, model = "{prompts} prompts × {prompt_tokens} tokens", "{layers} layers of {hidden}"
    work = f"{prompts} × {{responses}} responses × {{new_tokens}} tokens; a Llama of {model}".format(**world)
    return [
        f"{machine['device']}, {machine['threads']} threads, {packages}",
        f"{work}, {found['parameters'] / 1e6:.2f} M parameters",
    ]
