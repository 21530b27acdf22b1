"""Every metric that is logged, explained; one file a subject."""

from .critic import CRITIC
from .held_out import HELD_OUT, JUDGES
from .language_model import LANGUAGE_MODEL
from .metric import Group, Metric
from .optimisation import OPTIMISATION
from .policy_gradient import POLICY_GRADIENT
from .preference import PREFERENCE
from .rankings import RANKINGS
from .reward_model import REWARD_MODEL
from .samples import SAMPLES

GROUPS = (
    OPTIMISATION,
    LANGUAGE_MODEL,
    RANKINGS,
    REWARD_MODEL,
    SAMPLES,
    POLICY_GRADIENT,
    CRITIC,
    PREFERENCE,
    HELD_OUT,
    JUDGES,
)


def names() -> list[str]:
    """Every name once, patterns as they are."""
    return list(dict.fromkeys(name for group in GROUPS for metric in group.metrics for name in metric.names))


def find(name: str) -> list[tuple[Group, Metric]]:
    """All meanings of a logged name, or of a pattern as it is written here; none where it is not known."""
    found = [(group, metric) for group in GROUPS for metric in group.metrics]
    exact = [(group, metric) for group, metric in found if name in metric.names]
    return exact or [(group, metric) for group, metric in found if metric.explains(name)]
