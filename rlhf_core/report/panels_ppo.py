"""How a policy-gradient stage updates its policy."""

from rlhf_core.report.panels import Panel, Wanted, drawn, moves, panel
from rlhf_core.report.panels_answers import divergence, length, over_optimisation, scores
from rlhf_core.report.read import Run, Series
from rlhf_core.report.text import number

A_RESPONSE = ("reinforce", "rloo")
"""Algorithms whose loss, and so their entropy, is a sum over a response's tokens."""


def policy_gradient(run: Run) -> list[Panel]:
    """Panels of a stage that follows a reward: what came of it, then whatever the algorithm has."""
    return [
        over_optimisation(run),
        scores(run),
        divergence(run),
        length(run),
        *drawn([entropy(run), updates(run), critic(run), groups(run)]),
    ]


def entropy(run: Run) -> Panel:
    """How random the policy still is."""
    unit = "response" if run.algorithm in A_RESPONSE else "token"
    caption = f"Nats a {unit}; a fall to nothing means the policy says one thing only."
    return panel(run, "Entropy", caption, [Wanted("entropy", "", "entropy")])


def critic(run: Run) -> Panel:
    """How good the critic is; one that is not there has a loss of 0."""
    if not moves(run, "value_loss"):
        return Panel("Critic", "", empty="This run has no critic.")
    wanted = [Wanted("value_loss", "value loss", "value"), Wanted("explained_variance", "explained variance", "value")]
    return panel(run, "Critic", "Explained variance of 1 is a perfect critic, 0 no better than the mean.", wanted)


def groups(run: Run) -> Panel:
    """How many prompts teach nothing."""
    caption = "Part of prompts whose responses all score alike: they teach nothing."
    return panel(run, "Flat groups", caption, [Wanted("flat_groups", "", "update")])


def updates(run: Run) -> Panel:
    """How far updates go, and whether the first minibatch is on-policy."""
    clipped = Wanted("clip_frac", "part of tokens clipped", "update")
    sizes = [clipped, Wanted("approx_kl", "KL of one update, nats", "kl")]
    wanted = [want for want in sizes if moves(run, want.metric)]
    caption = f"How far an update moves the policy{' before the clip holds it' if clipped in wanted else ''}."
    ratios = [value for value in run.train.get("first_ratio_max", Series()).values if value is not None]
    if ratios:
        caption += f" The first minibatch's ratio stays within {number(max(abs(ratio - 1) for ratio in ratios))} of 1."
    return panel(run, "Size of the updates", caption, wanted)
