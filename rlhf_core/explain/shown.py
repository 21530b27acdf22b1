"""Explanations as plain text, a line a fact, for a pipe or a file."""

from collections.abc import Iterable, Iterator

from .metric import Group, Metric


def facts(metric: Metric) -> list[tuple[str, str]]:
    """What is said of a metric, each with its label."""
    told = [
        ("formula", metric.formula),
        ("unit", metric.unit),
        ("over", metric.over),
        ("healthy", metric.healthy),
        ("rising", metric.rising),
        ("falling", metric.falling),
        ("do", metric.action),
    ]
    return [(label, text) for label, text in told if text]


def plain(group: Group) -> Iterator[str]:
    """A group's metrics."""
    yield f"{group.title} ({group.logged})"
    for metric in group.metrics:
        yield f"\n  {metric.title}"
        yield from (f"    {label:8} {text}" for label, text in facts(metric))
    yield ""


def contents(groups: Iterable[Group]) -> str:
    """What can be explained."""
    rows = "\n".join(f"  {group.title:16} {', '.join(m.title for m in group.metrics)}" for group in groups)
    return f"rlhf explain metrics [NAME …]: formula, unit, what it means when it rises or falls, what to do\n\n{rows}"
