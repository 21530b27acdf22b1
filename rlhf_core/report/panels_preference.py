"""What a policy learned from pairs, without a reward model between."""

from rlhf_core.report.charts import Level
from rlhf_core.report.panels import Panel, Wanted, drawn, losses, panel
from rlhf_core.report.panels_answers import answers
from rlhf_core.report.read import Run


def preference(run: Run) -> list[Panel]:
    """Panels of a stage that learns from rankings directly, and of its answers."""
    return [
        accuracy(run, "Part of pairs that the policy's own likelihood puts in the raters' order."),
        losses(run, "The objective, a mean over pairs (KTO: responses)"),
        *drawn([rewards(run), logprobs(run)]),
        *answers(run),
    ]


def pairs(run: Run) -> list[Panel]:
    """Panels of a policy gradient that makes pairs of its own samples; none of another."""
    if "reward_margin" not in run.train:
        return []
    return drawn([accuracy(run, "Part of its own pairs that the policy orders as the reward does."), rewards(run)])


def accuracy(run: Run, caption: str) -> Panel:
    """How often the better response has the higher implicit reward."""
    return panel(run, "Pairs in order", caption, [Wanted("accuracy", "", "accuracy", [Level(0.5, "chance")])])


def rewards(run: Run) -> Panel:
    """What the policy's likelihood says of either response, and the difference."""
    caption = "β times the log-ratio to the reference; without one, β times the log-prob of a token."
    wanted = [
        Wanted("reward_margin", "margin", "reward"),
        Wanted("chosen_reward", "better response", "judge-2"),
        Wanted("rejected_reward", "worse response", "judge-3"),
    ]
    return panel(run, "Implicit rewards", caption, wanted)


def logprobs(run: Run) -> Panel:
    """Whether the better responses become likelier, or only less unlikely than the others."""
    caption = "Nats a response. Where both fall, the margin grows at the cost of the better responses too."
    wanted = [
        Wanted("chosen_logprob", "better response", "judge-2"),
        Wanted("rejected_logprob", "worse response", "judge-3"),
    ]
    return panel(run, "Log-probs of ranked responses", caption, wanted)
