"""What predicting text logs, as a stage of its own or beside reinforcement learning."""

from .metric import Group, Metric

LANGUAGE_MODEL = Group(
    "language model",
    "lm, sft, feedme; ptx_loss by ppo, text_… by evaluator=[perplexity] in stages that sample",
    (
        Metric(
            names=("loss",),
            formula="−1/N · Σ_t log π(x_t | x_<t); sft and feedme: of the response and its end token alone",
            unit="nats a token",
            over="predicted tokens, of the step's batch or of held-out examples",
            healthy="both fall, the held-out loss a little above that of training",
            rising="held-out while training falls: it learns its examples by heart; both: the learning rate is too "
            "high",
            action="fewer epochs or more data where only the held-out loss rises; lower algorithm.optimizer.lr where "
            "both do",
        ),
        Metric(
            names=("perplexity",),
            formula="exp(held-out loss)",
            unit="tokens between which the model hesitates as if they were equally likely",
            over="predicted held-out tokens (a geometric mean)",
            healthy="it falls from about the vocabulary's size (new weights) to a plateau",
            rising="as loss",
            action="as loss; compare it only between runs of one tokenizer",
        ),
        Metric(
            names=("tokens",),
            formula="how many tokens the step's batch predicts",
            unit="tokens an optimiser step",
            over="nothing: a count",
            healthy="it scatters about its mean",
            rising="longer examples in this batch",
            action="change algorithm.batch_size or algorithm.max_length where steps are too small or too slow",
        ),
        Metric(
            names=("text_loss", "text_perplexity"),
            formula="−1/N · Σ_t log π(x_t | x_<t) of held-out documents, and its exponential",
            unit="nats a token; tokens",
            over="all tokens of the data's held-out documents but each first",
            healthy="it rises a little and stays there",
            rising="the policy forgets plain text for its reward: the alignment tax",
            falling="pretraining text is learned beside the reward (ptx_coef)",
            action="raise algorithm.ptx_coef (ppo) or algorithm.kl_coef, or stop earlier",
        ),
        Metric(
            names=("ptx_loss",),
            formula="−1/N · Σ_t log π(x_t | x_<t) of training documents; the gradient takes it ptx_coef times",
            unit="nats a token",
            over="tokens of the pretraining text in the rollout's updates",
            healthy="flat at its first value",
            rising="reinforcement learning costs the policy its language",
            falling="the pretraining text is still being learned",
            action="raise algorithm.ptx_coef until it stays flat",
        ),
    ),
)
