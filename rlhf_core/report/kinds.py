"""What a stage's section shows, by what kind of learning it is."""

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_core.report import panels, panels_answers, panels_preference, panels_ranking, tiles
from rlhf_core.report.panels import Panel
from rlhf_core.report.panels_best_of import best_of_n
from rlhf_core.report.panels_ppo import policy_gradient
from rlhf_core.report.read import Run
from rlhf_core.report.tiles import Tile


@dataclass(frozen=True)
class Kind:
    """A kind of stage: its panels, its key numbers, the metrics the panels draw, whether it learns at all."""

    panels: Callable[[Run], list[Panel]]
    tiles: Callable[[Run], list[Tile]]
    drawn: frozenset[str]
    trains: bool = True


TEXT = frozenset({"loss", "lr", "grad_norm"})
ANSWERS = frozenset(
    {"reward", "kl", "kl_coef", "length", "win_rate", "win_rate_low", "win_rate_high", "text_perplexity", "text_loss"}
    | {"reward_start", "reward_gain_sd", "length_ratio"}  # the same curves in other units
)
UPDATES = frozenset(
    {"entropy", "clip_frac", "approx_kl", "value_loss", "explained_variance", "flat_groups", "ptx_loss"}
)
PAIRS = frozenset(
    {"accuracy", "chosen_reward", "rejected_reward", "reward_margin", "chosen_logprob", "rejected_logprob"}
)
PREFIXES = ("judge/", "judge_start/", "reward/", "reward_start/", "reward_gain_sd/", "best_of_")
"""Metrics that panels draw by their beginning."""
ITSELF = ("judge/", "reward_start", "reward_gain_sd")
"""Beginnings of metrics that a stage without training has tiles for, or that compare it with itself."""

LANGUAGE_MODEL = Kind(panels.language_model, tiles.language_model, TEXT)
RANKING = Kind(panels_ranking.ranking, tiles.ranking, frozenset({"loss", "accuracy", "accuracy_all"}))
POLICY_GRADIENT = Kind(
    lambda run: [*policy_gradient(run), *panels_preference.pairs(run), *best_of_n(run), *panels_answers.parts(run)],
    tiles.answers,
    ANSWERS | UPDATES | PAIRS,
)
PREFERENCE = Kind(
    lambda run: [*panels_preference.preference(run), *panels_answers.parts(run)],
    lambda run: [*tiles.preference(run), *tiles.answers(run)],
    ANSWERS | PAIRS | {"loss"},
)
IMITATION = Kind(
    lambda run: [*panels.language_model(run), *panels_answers.answers(run), *panels_answers.parts(run)],
    lambda run: [*tiles.language_model(run), *tiles.answers(run)],
    ANSWERS | TEXT,
)
EVALUATION = Kind(
    lambda run: [],
    lambda run: [*tiles.answers(run), *tiles.others(run, ANSWERS - {"text_perplexity"}, ITSELF)],
    ANSWERS,
    trains=False,
)
COLLECTION = Kind(lambda run: [], tiles.others, frozenset(), trains=False)

BY_ALGORITHM = {
    **dict.fromkeys(("lm", "sft"), LANGUAGE_MODEL),
    "feedme": IMITATION,
    "reward_model": RANKING,
    **dict.fromkeys(("ppo", "reinforce", "reinforce_pp", "rloo"), POLICY_GRADIENT),
    **dict.fromkeys(("grpo", "dr_grpo", "dapo", "gspo", "cispo"), POLICY_GRADIENT),
    **dict.fromkeys(("online_dpo", "best_of_n"), POLICY_GRADIENT),
    **dict.fromkeys(("dpo", "ipo", "kto", "orpo", "simpo"), PREFERENCE),
    "evaluate": EVALUATION,
    "rank": COLLECTION,
}


def kind_of(run: Run) -> Kind:
    """By the algorithm's name; one that is not ours, by what it logs."""
    if run.algorithm in BY_ALGORITHM:
        return BY_ALGORITHM[run.algorithm]
    names = run.train.keys() | run.held_out.keys()
    if {"reward", "kl"} <= run.train.keys() or ({"reward", "kl"} <= names and "loss" not in names):
        return POLICY_GRADIENT
    if "reward_margin" in names:
        return PREFERENCE
    if "accuracy" in names:
        return RANKING
    return IMITATION if "kl" in names else LANGUAGE_MODEL


def main_panels(run: Run) -> list[Panel]:
    """The panels in view. A metric's own panel is there only if a stage of its kind is meant to have it."""
    return kind_of(run).panels(run)


def other_panels(run: Run) -> list[Panel]:
    """Every metric that the panels in view leave out; of a stage that measures once, the tiles have it."""
    if not kind_of(run).trains:
        return []
    prefixed = {name for name in (*run.train, *run.held_out) if name.startswith(PREFIXES)}
    on_train_only = {name for name in prefixed if name.startswith("judge/") and name not in run.held_out}
    return panels.others(run, kind_of(run).drawn | prefixed - on_train_only)
