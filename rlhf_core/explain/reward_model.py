"""What a reward model logs; its held-out numbers come from ``evaluator=[ranking_accuracy]``."""

from .metric import Group, Metric

REWARD_MODEL = Group(
    "reward model",
    "reward_model; held-out rows by evaluator=[ranking_accuracy]",
    (
        Metric(
            names=("loss",),
            formula="mean over rankings of the mean over their pairs of −log σ(s⁺ − s⁻ − margin) + center_coef·(s⁺ + "
            "s⁻)², "
            "s⁺ the score of the better response",
            unit="nats; ln 2 = 0.693 is what knowing nothing costs",
            over="rankings with a preference (pairs=shuffled: pairs)",
            healthy="from 0.69 down to a plateau that the raters' disagreement sets",
            rising="the learning rate is too high, or a batch that raters did not agree on",
            falling="to nearly 0: rankings are learned by heart",
            action="one epoch is as a rule enough (InstructGPT, §3.5); lower algorithm.optimizer.lr where it jumps",
        ),
        Metric(
            names=("accuracy",),
            formula="share of pairs with s⁺ > s⁻, ½ where equal",
            unit="share, 0 to 1",
            over="training: rankings, of each its pairs' mean; held-out: pairs whose mean ratings differ by min_gap "
            "or more",
            healthy="from 0.5 up to between the simple rules (sentiment, length) and human",
            rising="it orders more pairs as people do",
            falling="held-out while training rises: rankings are learned by heart",
            action="more rankings before more epochs; below length it is a length rule, so look at the data",
        ),
        Metric(
            names=("accuracy_low", "accuracy_high"),
            formula="accuracy ± 1.96·√(Σ over rankings of (Σ over their pairs of win − accuracy)²) / pairs",
            unit="share",
            over="held-out rankings, which are independent of each other; their pairs are not",
            healthy="a narrow interval that leaves out length and chance",
            rising="as accuracy",
            action="where it holds both of two runs, they do not differ: measure more rankings (evaluator limit)",
        ),
        Metric(
            names=("accuracy_all",),
            formula="accuracy of all pairs whose mean ratings (without ratings: ranks) differ at all",
            unit="share",
            over="held-out pairs",
            healthy="below accuracy, and rising with it: near ties are hard for people too",
            rising="as accuracy",
            action="compare it with other work only where that counts all pairs as well",
        ),
        Metric(
            names=("human",),
            formula="share of pairs that one rater orders as the mean of all others does, averaged over raters, ties ½",
            unit="share",
            over="the same pairs as accuracy; only where the data have ratings",
            healthy="constant: it belongs to the data",
            rising="never in a run",
            action="a model above it has found what the raters share; nobody's single judgment is a higher bar",
        ),
        Metric(
            names=("sentiment", "length"),
            formula="accuracy of other scores on the same pairs: the lexicon rule, and the response's number of "
            "characters; "
            "evaluator.ranking_accuracy.baselines adds more by their names",
            unit="share",
            over="held-out pairs",
            healthy="constant, and below accuracy",
            rising="never in a run",
            action="a model that does not beat them has learned no more than they know",
        ),
        Metric(
            names=("chance",),
            formula="½",
            unit="share",
            over="nothing",
            healthy="constant",
            rising="never",
            action="none: it is there to be compared with",
        ),
        Metric(
            names=("pairs",),
            formula="how many held-out pairs accuracy is measured on",
            unit="pairs",
            over="nothing: a count",
            healthy="constant, thousands",
            rising="never in a run",
            action="with few the interval is wide: raise evaluator.ranking_accuracy.limit or lower min_gap",
        ),
    ),
)
