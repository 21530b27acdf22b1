"""What sampled answers are like, in rollouts and to held-out prompts."""

from .metric import Group, Metric

SAMPLES = Group(
    "sampled answers",
    "rows of training of every algorithm that learns from its own samples; held-out rows of all that answer prompts",
    (
        Metric(
            names=("reward",),
            formula="score of a response plus its step rewards, as the reward plugin gives them: without the KL, "
            "score_clip and missing_eos_penalty",
            unit="the reward's own",
            over="responses, of the rollout or to held-out prompts",
            healthy="it rises and flattens; judges rise with it",
            rising="what the policy is trained on; while judges fall it is over-optimisation (Gao et al. 2023)",
            falling="the KL costs more than the reward pays, or updates are too large",
            action="hold it against judge/NAME and kl; with too little of it lower algorithm.kl_coef or raise the "
            "learning rate",
        ),
        Metric(
            names=("reward/NAME",),
            formula="score of one part of the reward, before its weight",
            unit="the part's own",
            over="responses, as reward",
            healthy="all parts rise, or stay where they are bounds",
            rising="this part is what is being learned",
            falling="another part is bought with it",
            action="change reward.weights.NAME",
        ),
        Metric(
            names=("reward_std",),
            formula="population standard deviation of reward",
            unit="the reward's own",
            over="all responses of the rollout, or all held-out ones",
            healthy="it shrinks slowly as the policy agrees with the reward",
            rising="the policy splits into good and bad habits",
            falling="to nearly 0: responses are all alike, and there is nothing to compare",
            action="look at samples.jsonl; more responses or prompts, or algorithm.entropy_coef where they are all "
            "alike",
        ),
        Metric(
            names=("kl",),
            formula="Σ over a response's chosen tokens of log π(y_t) − log π_ref(y_t), as it was sampled (k1)",
            unit="nats a response",
            over="responses, of the rollout or to held-out prompts",
            healthy="from 0 it rises with the reward and settles, at kl_target where one is set",
            rising="distance from the start: the price of the reward, not a reward itself",
            falling="β holds the policy too near the start; below 0 for long, sampler and reference do not compute "
            "alike",
            action="raise algorithm.kl_coef or set algorithm.kl_target where it outgrows the judges' gain; else lower "
            "it",
        ),
        Metric(
            names=("length",),
            formula="how many tokens the policy chose, the end token included, tool output not",
            unit="tokens a response",
            over="responses, of the rollout or to held-out prompts",
            healthy="about what it was at the start",
            rising="the reward likes long answers, or the policy does not come to an end (see eos_frac)",
            falling="a KL paid by the token makes short answers cheap",
            action="add reward=length as a part, or set algorithm.missing_eos_penalty; aggregate=constant takes length "
            "out of GRPO's loss",
        ),
        Metric(
            names=("eos_frac",),
            formula="1 − share of responses cut at rollout.max_new_tokens",
            unit="share, 0 to 1",
            over="responses, of the rollout or to held-out prompts",
            healthy="near 1",
            rising="answers come to an end by themselves",
            falling="answers outgrow the limit, and their scores are of fragments",
            action="raise rollout.max_new_tokens, or set algorithm.missing_eos_penalty",
        ),
    ),
)
