"""What answers to held-out prompts show, beside the start's to the same prompts, and what judges say of them."""

from .metric import Group, Metric

HELD_OUT = Group(
    "held-out answers",
    "held-out rows of every algorithm that answers prompts, beside those of sampled answers",
    (
        Metric(
            names=("reward_start", "reward_start/NAME"),
            formula="reward, or its part, of the answers of the policy as it was before training",
            unit="the reward's own",
            over="held-out responses",
            healthy="constant",
            rising="never in a run",
            action="none: it is there to be compared with",
        ),
        Metric(
            names=("reward_gain_sd", "reward_gain_sd/NAME"),
            formula="(reward − reward_start) / population SD of the start's scores; the plain difference where that "
            "is 0",
            unit="standard deviations of the start's scores",
            over="held-out responses",
            healthy="from 0 up by 1 to 3 in the default task; of some parts it may stay 0",
            rising="as reward, on a scale on which rewards can be compared",
            action="as reward",
        ),
        Metric(
            names=("length_ratio",),
            formula="length / length of the start's answers",
            unit="share; 1 is no drift",
            over="held-out responses: a ratio of two means",
            healthy="0.6 to 1.4",
            rising="as length",
            falling="as length",
            action="as length; compare win rates only at like length, as many judges prefer the longer answer",
        ),
        Metric(
            names=("best_of_N/NAME",),
            formula="NAME of the answers with the highest reward among each prompt's first N; best_of_N/kl is "
            "log N − (N − 1)/N, the KL of choosing so (an upper bound where answers repeat)",
            unit="that of NAME; kl in nats a response",
            over="held-out prompts",
            healthy="reward and judges rise with log N: the most that this KL buys without training",
            rising="with N: the reward can tell the policy's answers apart",
            falling="a judge, with N: the reward is over-optimised already by choosing",
            action="hold training's reward at a KL against it; a better reward model where a judge falls with N",
        ),
    ),
)

JUDGES = Group(
    "judges",
    "held-out rows, by evaluator=[win_rate]",
    (
        Metric(
            names=("win_rate",),
            formula="wins + ½·ties of the policy's answer against the start's (or against evaluator.win_rate.against), "
            "each pair judged in both orders",
            unit="share, 0 to 1; ½ is no difference",
            over="held-out prompts",
            healthy="from 0.5 up",
            rising="a judge that training did not see prefers the policy",
            falling="while reward rises: over-optimisation",
            action="take the checkpoint where it is highest; raise algorithm.kl_coef, or better the reward model",
        ),
        Metric(
            names=("win_rate_low", "win_rate_high"),
            formula="Wilson's 95 % interval: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = 1.96",
            unit="share",
            over="held-out prompts",
            healthy="an interval that leaves out ½",
            rising="as win_rate",
            action="raise algorithm.eval_prompts where two runs' intervals overlap and the difference matters",
        ),
        Metric(
            names=("judge/NAME",),
            formula="score of an answer by a judge, named by its class (evaluator.win_rate.judge)",
            unit="the judge's own",
            over="held-out responses",
            healthy="it rises with the reward",
            rising="the gain is real as far as this judge sees",
            falling="while reward rises: over-optimisation",
            action="as win_rate",
        ),
        Metric(
            names=("judge_start/NAME",),
            formula="the judge's score of the start's answers (or of those of evaluator.win_rate.against)",
            unit="the judge's own",
            over="held-out responses",
            healthy="constant",
            rising="never in a run",
            action="none: it is there to be compared with",
        ),
    ),
)
