"""What every algorithm that takes optimiser steps logs."""

from .metric import Group, Metric

OPTIMISATION = Group(
    "optimisation",
    "rows of training, every algorithm",
    (
        Metric(
            names=("lr",),
            formula="optimizer.lr · min(1, (step + 1)/warmup_steps) · (final_lr + (1 − final_lr)·s(step/total)), "
            "s(x): 1 − x (linear), ½(1 + cos πx) (cosine), 1 (constant)",
            unit="change of a parameter a step, about: Adam divides the gradient by its size",
            over="nothing: the rate of this step",
            healthy="it rises over warmup_steps and then follows algorithm.optimizer.schedule",
            rising="the warm-up",
            falling="the schedule",
            action="halve algorithm.optimizer.lr first where a loss or the KL jumps; double it where nothing moves",
        ),
        Metric(
            names=("grad_norm",),
            formula="‖∇loss‖₂ of all trained parameters together (PPO's critic too), before it is clipped",
            unit="loss a unit of parameter",
            over="the optimiser steps on this row's batch or rollout",
            healthy="steady or slowly falling, with a spike now and then that the clip to max_grad_norm catches",
            rising="updates get too large for where the weights are, or few outliers make the loss; always above "
            "max_grad_norm, the clip and not lr sets the size of a step",
            falling="to nearly 0: the batch teaches nothing more (flat groups, or a loss that is saturated)",
            action="lower algorithm.optimizer.lr or lengthen warmup_steps; one that is not finite ends the run",
        ),
    ),
)
