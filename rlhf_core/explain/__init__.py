"""``rlhf explain``: what the numbers that a run logs mean. Texts alone: neither torch nor a plugin is imported."""

import json
import sys
from dataclasses import asdict
from itertools import chain

from rlhf_core.errors import UserError
from rlhf_core.plugins import did_you_mean

from . import metrics
from .metric import Group, Metric
from .shown import contents, plain

TOPICS = ("metrics",)


def main(argv: list[str]) -> int:
    """Run ``rlhf explain`` with these words.

    Raises:
        UserError: an unknown option, topic or metric.
    """
    words = [word for word in argv if word != "--json"]
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word}: no such option of rlhf explain; there is --json")
    topic, names = (words[0], words[1:]) if words else ("", [])
    if topic and topic not in TOPICS:
        known = metrics.find(topic)
        hint = f"; say rlhf explain metrics {topic}" if known else did_you_mean(topic, TOPICS)
        raise UserError(f"{topic}: no such topic; there are: {', '.join(TOPICS)}{hint}")
    chosen = chosen_groups(names)
    if "--json" in argv:
        print(json.dumps([asdict(metric) | {"group": group.title} for group in chosen for metric in group.metrics]))
    elif not topic:
        print(contents(chosen))
    elif sys.stdout.isatty():
        from .terminal import show  # rich is slow to import

        show(chosen)
    else:
        print("\n".join(chain.from_iterable(plain(group) for group in chosen)))
    return 0


def chosen_groups(names: list[str]) -> list[Group]:
    """The groups with those of their metrics that are named; all where none is named."""
    found = list(chain.from_iterable(known(name) for name in names))
    if not names:
        return list(metrics.GROUPS)
    kept = [
        (group, tuple(metric for metric in group.metrics if any(metric is other for _, other in found)))
        for group in metrics.GROUPS
    ]
    return [Group(group.title, group.logged, few) for group, few in kept if few]


def known(name: str) -> list[tuple[Group, Metric]]:
    """All meanings of a name."""
    found = metrics.find(name)
    if not found:
        near = did_you_mean(name, metrics.names())
        raise UserError(f"{name}: no such metric; rlhf explain lists them{near}")
    return found
