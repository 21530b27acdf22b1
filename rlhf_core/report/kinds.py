"""What a stage's section shows, by what kind of learning it is."""

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_core.report import panels, panels_ppo, panels_ranking, tiles
from rlhf_core.report.panels import Panel
from rlhf_core.report.read import Run
from rlhf_core.report.tiles import Tile


@dataclass(frozen=True)
class Kind:
    """A kind of stage: its panels, its key numbers, and the metrics the panels draw."""

    panels: Callable[[Run], list[Panel]]
    tiles: Callable[[Run], list[Tile]]
    drawn: frozenset[str]


LANGUAGE_MODEL = Kind(panels.language_model, tiles.language_model, frozenset({"loss", "lr", "grad_norm"}))
RANKING = Kind(panels_ranking.ranking, tiles.ranking, frozenset({"loss", "accuracy", "accuracy_all"}))
POLICY_GRADIENT = Kind(
    panels_ppo.policy_gradient,
    tiles.policy_gradient,
    frozenset({"reward", "kl", "kl_coef", "length", "entropy", "clip_frac", "approx_kl"})
    | {"value_loss", "explained_variance", "win_rate", "win_rate_low", "win_rate_high"}
    | {"reward_start", "reward_gain_sd", "length_ratio"},  # the same curves in other units
)
BY_ALGORITHM = {"lm": LANGUAGE_MODEL, "sft": LANGUAGE_MODEL, "reward_model": RANKING, "ppo": POLICY_GRADIENT}


def kind_of(run: Run) -> Kind:
    """By the algorithm's name; one that is not ours, by what it logs."""
    if run.algorithm in BY_ALGORITHM:
        return BY_ALGORITHM[run.algorithm]
    names = run.train.keys() | run.held_out.keys()
    if {"reward", "kl"} <= names:
        return POLICY_GRADIENT
    return RANKING if "accuracy" in names else LANGUAGE_MODEL


def main_panels(run: Run) -> list[Panel]:
    """The panels in view. A metric's own panel is there only if a stage of its kind is meant to have it."""
    return kind_of(run).panels(run) + panels_ppo.reward_parts(run)


def other_panels(run: Run) -> list[Panel]:
    """Every metric that the panels in view leave out."""
    prefixed = {name for name in (*run.train, *run.held_out) if name.startswith(("judge/", "judge_start/", "reward/"))}
    on_train_only = {name for name in prefixed if name.startswith("judge/") and name not in run.held_out}
    return panels.others(run, kind_of(run).drawn | prefixed - on_train_only)
