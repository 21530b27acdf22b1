"""What PPO's critic logs."""

from .metric import Group, Metric

CRITIC = Group(
    "critic",
    "rows of training of ppo; reinforce_pp has none and logs 0",
    (
        Metric(
            names=("value_loss",),
            formula="1/tokens · Σ ½·max((V_t − R_t)², (clip(V_t, V_old ± value_clip) − R_t)²), R = A + V_old",
            unit="the reward's own, squared",
            over="tokens, then updates",
            healthy="it falls in the first rollouts and follows the spread of returns",
            rising="returns move faster than the critic learns them",
            action="start it from the reward model (algorithm.critic_path), raise algorithm.value_coef",
        ),
        Metric(
            names=("value_clip_frac",),
            formula="share of tokens whose clipped error is the larger one: there the critic gets no gradient",
            unit="share, 0 to 1",
            over="tokens, then updates",
            healthy="under 0.2",
            rising="values want to move further than value_clip in a rollout",
            action="raise algorithm.value_clip to the scale of the returns",
        ),
        Metric(
            names=("explained_variance",),
            formula="1 − Var(R − V)/Var(R), as the rollout was sampled",
            unit="share; 1 is a perfect critic, 0 no better than the mean",
            over="tokens of the rollout",
            healthy="from 0 up to 0.3 to 0.8",
            rising="advantages get less noise from the critic",
            falling="below 0 the critic is worse than none",
            action="more epochs for the critic by a higher value_coef, critic_path; or an algorithm without one "
            "(rloo, grpo)",
        ),
    ),
)
