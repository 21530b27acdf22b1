"""The explanations as a page in Markdown: ``python -m rlhf_core.explain.page > docs/metrics.md``."""

from collections.abc import Iterator

from .metric import Group
from .metrics import GROUPS
from .shown import facts

HEAD = """# Metrics

What every number in `metrics.jsonl`, in the trackers and in the report means. `rlhf explain metrics NAME` says the same
of one.

This page is made from `rlhf_core/explain/`; after a change there:
`python -m rlhf_core.explain.page > docs/metrics.md`.

π is the policy, π_old the policy that sampled, π_ref the reference (the policy as it started), ρ = π/π_old, A an
advantage, V a value. Rows of phase `train` are of a step's batch or rollout, rows of phase `eval` are held-out. Where a
step has several minibatches or pieces of them, a row holds the mean over all, each weighted by what it is a mean over;
names that end in `_max` hold the largest.
"""


def page() -> str:
    """The whole page."""
    contents = "\n".join(f"* [{group.title.capitalize()}](#{anchor(group.title)})" for group in GROUPS)
    return "\n".join([HEAD, contents, *(line for group in GROUPS for line in section(group))])


def section(group: Group) -> Iterator[str]:
    """A group's metrics."""
    yield f"\n## {group.title.capitalize()}\n\nLogged: {group.logged}."
    for metric in group.metrics:
        yield f"\n### {', '.join(f'`{name}`' for name in metric.names)}\n"
        yield from (f"* {label}: {text}" for label, text in facts(metric))


def anchor(title: str) -> str:
    """What a heading is linked by."""
    return title.replace(" ", "-")


if __name__ == "__main__":
    print(page())
