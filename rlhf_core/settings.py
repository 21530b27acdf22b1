"""The root of a configuration: what ``rlhf train`` and ``rlhf pipeline`` understand beside the plugins.

The dataclasses are the only home of these defaults; ``conf/train.yaml`` and ``conf/pipeline.yaml`` hold differences.
Nothing heavy is imported here: ``rlhf --help`` reads this file.
"""

from dataclasses import dataclass, field
from typing import Any

REQUIRED: Any = "???"
"""OmegaConf's mark of a value that has to be given."""


@dataclass
class Trainer:
    """How often the training loop logs, evaluates and saves, counted in steps: one batch, for PPO one rollout."""

    log_every: int = 1
    """steps between two lines of metrics.jsonl"""
    checkpoint_every: int = 50
    """steps between two checkpoints; 0 saves only at the end"""
    keep_checkpoints: int = 2
    """how many of the newest checkpoints stay on disk"""
    eval_every: int = 0
    """steps between two evaluations; 0 evaluates only before the first step and after the last"""
    microbatch_tokens: int = 8192
    """tokens of one forward and backward pass: bounds memory, leaves the result unchanged"""
    max_steps: int | None = None
    """stop after this many steps; null stops at the algorithm's own total"""


@dataclass
class Kernels:
    """Which backend computes the ops of ``rlhf_core.kernels``."""

    backend: str = "auto"
    """auto, eager, cpu, triton or cuda; a forced backend that cannot run is an error"""
    ops: dict[str, str] = field(default_factory=dict)
    """a backend for single ops, e.g. {shaped_gae: eager}"""


@dataclass
class TrainSettings:
    """One stage: an algorithm and what it works with."""

    policy: Any = REQUIRED
    """the language model being trained (plugin)"""
    reward: Any = None
    """what scores responses (plugin); only algorithms that sample need one"""
    algorithm: Any = REQUIRED
    """how the policy gets better (plugin)"""
    data: Any = REQUIRED
    """prompts, demonstrations, rankings or text (plugin)"""
    rollout: Any = None
    """how responses are sampled (plugin)"""
    evaluator: dict[str, Any] = field(default_factory=dict)
    """independent judges (plugins), several at once: evaluator=[ranking_accuracy,win_rate]"""
    tracker: dict[str, Any] = field(default_factory=dict)
    """where metrics go beside metrics.jsonl (plugins), several at once"""
    trainer: Trainer = field(default_factory=Trainer)
    """how often to log, evaluate and save"""
    kernels: Kernels = field(default_factory=Kernels)
    """which backend computes the kernels"""
    precision: str = "auto"
    """what models compute in: float32, bfloat16 (autocast, weights stay float32), or auto: bfloat16 on processors that
    multiply it, for models that gain by it"""
    seed: int = 0
    """seeds python, numpy and torch, and the order of the data"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N"""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice"""
    objective: str | None = None
    """the number of the last evaluation that a sweeper (hydra/sweeper=optuna) is told"""
    run_dir: str | None = None
    """the run folder; null makes runs/<date>_<time>_<algorithm>"""


@dataclass
class PipelineSettings:
    """Named stages in order, each a list of the overrides one would type after ``rlhf train``."""

    name: str = REQUIRED
    """what the pipeline is called"""
    stages: dict[str, list[str]] = field(default_factory=dict)
    """stage name → overrides; ${stage:NAME} stands for the result of an earlier stage, ${stage:A|B} for A's where there
    is one, else B's, ${stages:NAME} for those of all its rounds so far"""
    rounds: int = 1
    """how often the stages in repeat are run, one after the other; ppo of round 2 is called ppo_2"""
    repeat: list[str] = field(default_factory=list)
    """the last stages, in their order, that are run in rounds"""
    seed: int = 0
    """the seed of every stage"""
    device: str = "auto"
    """the device of every stage"""
    samples: int = 5
    """samples shown before and after at the end"""
    run_dir: str | None = None
    """the pipeline folder; null makes runs/<date>_<time>_<pipeline>"""
    stage_overrides: dict[str, dict[str, str]] = field(default_factory=dict)
    """filled from overrides such as ppo.algorithm.kl_coef=0.1; not meant to be written by hand"""
    round: str = r"\${round}"
    """in a repeated stage ${round} stands for the number of the round, from 1; not meant to be set"""
