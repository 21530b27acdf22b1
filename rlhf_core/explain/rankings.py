"""What collecting fresh rankings logs."""

from .metric import Group, Metric

RANKINGS = Group(
    "fresh rankings",
    "rank, once, of the rankings it writes",
    (
        Metric(
            names=("rankings",),
            formula="how many prompts were answered and ranked",
            unit="rankings",
            over="nothing: a count",
            healthy="algorithm.prompts",
            rising="between rounds: more prompts",
            action="raise algorithm.prompts where the next reward model learns too little",
        ),
        Metric(
            names=("tied",),
            formula="share of pairs of answers to one prompt with equal ranks",
            unit="share, 0 to 1",
            over="all pairs",
            healthy="under a half",
            rising="between rounds: answers become alike, and rankings say less",
            action="a higher rollout.temperature, more algorithm.responses, or a smaller algorithm.tie",
        ),
        Metric(
            names=("score", "score_best"),
            formula="the reward's score of the answers; of each prompt's best",
            unit="the reward's own",
            over="answers; prompts",
            healthy="rising between rounds where the judge is the same, the best ahead of the mean",
            rising="between rounds: the policy got better by this judge",
            action="where the best is no better than the mean, there is nothing left to rank",
        ),
        Metric(
            names=("agreement",),
            formula="share of pairs whose ranks and scores order them alike, of those that differ in both; only with "
            "algorithm.temperature or algorithm.file",
            unit="share, ½ to 1; ½ is chance",
            over="pairs",
            healthy="1 less what raters disagree: people reach 0.7 to 0.9 among themselves",
            rising="the raters and the reward see the same",
            falling="towards ½ the ranks are noise, below it the rater's order is upside down",
            action="lower algorithm.temperature; check that 0 is the best rank in algorithm.file",
        ),
    ),
)
