"""What learning from pairs without a reward model logs."""

from .metric import Group, Metric

PREFERENCE = Group(
    "preference",
    "dpo, ipo, kto, orpo, simpo, in training and on held-out rankings; online_dpo, in training, of its own samples",
    (
        Metric(
            names=("loss",),
            formula="the objective; with h = β·(log π(y⁺)/π_ref(y⁺) − log π(y⁻)/π_ref(y⁻)): dpo −log σ(h), ipo "
            "(h/β − 1/2β)² a token, kto 1 − σ(±(reward − β·z)), orpo −log p⁺ − β·log σ(log odds ratio), simpo −log "
            "σ(h − γ), "
            "no reference",
            unit="nats (ipo: squared nats a token; kto: 0 to 1)",
            over="pairs (kto: responses)",
            healthy="from its start (dpo ln 2 = 0.693, ipo 1/4β², kto about ½) down, training and held-out together",
            rising="held-out while training falls: preferences are learned by heart",
            action="fewer epochs, a higher beta, or a lower learning rate; never compare it between algorithms",
        ),
        Metric(
            names=("accuracy",),
            formula="share of pairs with reward(y⁺) > reward(y⁻), ½ where equal (kto: of responses on their side of z)",
            unit="share, 0 to 1",
            over="pairs (kto: responses), of a batch or held-out",
            healthy="held-out from ½ (of orpo and simpo from what likelihood knows) up to about a reward model's",
            rising="the policy's likelihood orders responses as people do",
            falling="held-out: learned by heart",
            action="hold it against a reward model's on the same data; high accuracy is no promise of better answers",
        ),
        Metric(
            names=("chosen_reward", "rejected_reward"),
            formula="of y⁺ and y⁻: dpo, kto β·log π(y)/π_ref(y); ipo the same a token; orpo, simpo β·log π(y)/|y|",
            unit="nats times β (ipo, orpo, simpo: a token)",
            over="pairs (kto: desirable and undesirable responses)",
            healthy="chosen at or above its start, rejected below it",
            rising="these responses become likelier than the start had them",
            falling="both: the margin is widened by making everything ranked less likely, and mass goes elsewhere",
            action="algorithm.imitation (dpo), a higher beta, sft on the chosen first, or orpo",
        ),
        Metric(
            names=("reward_margin",),
            formula="chosen_reward − rejected_reward",
            unit="as they",
            over="pairs (kto: a difference of two means)",
            healthy="from 0 up, ever more slowly; ipo's to ½ (1/2β nats a token, times β)",
            rising="preferences are told apart more clearly; without end, they are being learned by heart",
            action="stop where held-out accuracy stops rising; ipo, or label_smoothing, bounds it",
        ),
        Metric(
            names=("chosen_logprob", "rejected_logprob"),
            formula="Σ_t log π(y_t | x, y_<t), of y⁺ and y⁻",
            unit="nats a response",
            over="pairs",
            healthy="chosen about constant, rejected falling",
            rising="imitation",
            falling="of the chosen: answers like them become unlikely too, and others grow longer and stranger",
            action="as chosen_reward",
        ),
        Metric(
            names=("z",),
            formula="max(0, mean over mismatched pairs of log π(y′|x)/π_ref(y′|x)), y′ of the next ranking's prompt",
            unit="nats a response",
            over="mismatched pairs of the minibatch",
            healthy="near 0",
            rising="the policy likes ranked responses to any prompt: distance from the start that no preference asked "
            "for",
            action="a higher algorithm.beta or a lower learning rate",
        ),
    ),
)
