"""The texts of ``rlhf --help`` and ``rlhf <command> --help``; the options in them come from metadata."""

from collections.abc import Iterator

from rlhf_core.describe import FieldDoc, describe_class
from rlhf_core.plugins import KINDS, SEVERAL
from rlhf_core.presets import options

COMMANDS = {
    "train": "run one stage: an algorithm, a policy, data",
    "pipeline": "run stages in order: pretrain, SFT, reward model, PPO",
    "list": "which plugins are installed",
    "info": "one plugin: its fields, documentation, origin",
    "new": "write a plugin package of your own, with tests",
    "check": "does a plugin do what its contract says",
    "explain": "what a logged metric means, and what to do about it",
    "report": "one HTML file from a run, a pipeline, or a comparison of several",
    "chat": "talk to the result of a run",
    "bench": "compare the kernels with eager PyTorch and others",
    "conformance": "golden vectors against any implementation of GAE, PPO, GRPO, DPO …",
    "doctor": "what this machine can do, and what is broken",
}
GROUPS = {"train": (*KINDS, "experiment"), "pipeline": ("pipeline",)}

_OPTIONS = """options
  -m, --multirun         run once for every combination of the values given as key=a,b,c
  --cfg job [-p KEY]     print the configuration, or the part at KEY, instead of running
  --info [WHAT]          how it is composed: all, config, defaults, defaults-tree, plugins, searchpath
  -cd, --config-dir DIR  a folder with your own YAML: experiment/*.yaml, pipeline/*.yaml, reward/*.yaml …
  resume=RUN             go on with a run that was stopped, exactly where its last checkpoint is
  RLHF_TRACEBACK=1       (environment) whole tracebacks in place of one line"""

_TRAIN_EXAMPLES = """examples
  rlhf train                                               supervised fine-tuning of a small GPT on human ratings
  rlhf train algorithm=ppo policy.path=runs/sft/result reward=sentiment
  rlhf train algorithm=ppo reward=sentiment algorithm.kl_coef=0.1 seed=1
  rlhf train -m algorithm=ppo reward=sentiment algorithm.kl_coef=0.02,0.05,0.1
  rlhf train algorithm=ppo reward=sum +reward@reward.parts.mood=sentiment
  rlhf train --cfg job -p algorithm                        what the algorithm is set to
  rlhf train resume=runs/2026-01-31_12-00-00_sft"""

_PIPELINE_EXAMPLES = """examples
  rlhf pipeline                                            the embedded default, a few minutes on two cores
  rlhf pipeline pipeline=smollm2                           a real chat model, with LoRA
  rlhf pipeline pipeline=iterate rounds=3                  rank fresh answers, learn a reward, improve; again
  rlhf pipeline ppo.algorithm.kl_coef=0.1 sft.seed=3       STAGE.key=value: an override for one stage
  rlhf pipeline ppo.reward=sentiment
  rlhf pipeline -m ppo.algorithm.kl_coef=0.02,0.05,0.1     sweep, one pipeline a value
  rlhf pipeline resume=runs/2026-01-31_12-00-00_default"""

_SIMPLE = {
    "list": """usage: rlhf list [KIND] [--json]

All installed plugins, a line each; what is broken is marked and says why. Nothing is imported.

examples
  rlhf list
  rlhf list reward
  rlhf list --json""",
    "info": """usage: rlhf info KIND=NAME [--json]

One plugin: documentation, fields with types and defaults, where it comes from, presets, overrides to copy.
Nothing is imported.

examples
  rlhf info algorithm=ppo
  rlhf info reward=sentiment --json
  rlhf info ppo                                            the name alone, where only one kind has it""",
    "new": """usage: rlhf new KIND NAME [--folder DIR]

A package for a plugin of your own, working as it is: pyproject.toml with its entry point, a module of one page, a
preset that shows it at work, tests (the contract and what it promises), a README. Nothing that is there is overwritten.
KIND is policy, reward, algorithm, data, rollout, evaluator, tracker or benchmark.

options
  --folder DIR        where it is written (./NAME)

examples
  rlhf new reward my_reward
  rlhf new algorithm my_algorithm --folder ~/plugins/my_algorithm
  rlhf new benchmark my_losses""",
    "check": """usage: rlhf check KIND=NAME [key=value …] [--only CHECK] [--json]

Tries a plugin out in a small world: is its contract kept, and do its settings survive YAML, a sweep's worker, a resumed
run? A check that fails says what was expected, what came, why it matters and what to do. Exit code 1 where one fails.
The same checks as pytest's: rlhf_core.testing.parametrize_with_checks.

options
  --only CHECK        one check, several times for several (all)
  --json              every outcome as data
  device=cuda         where models are (cpu)

examples
  rlhf check reward=sentiment
  rlhf check reward=length reward.minimum=4 reward.maximum=8
  rlhf check algorithm=reinforce --only gradient_reaches_every_parameter
  rlhf check 'evaluator=[win_rate,perplexity]' tracker=[jsonl]
  rlhf check benchmark=eager --json""",
    "explain": """usage: rlhf explain [metrics [NAME …]] [--json]

Each logged metric: its formula and unit, what it is a mean over, how a healthy run looks, what a rise or a fall means,
what to do. Without a topic: what there is. Nothing is imported.

examples
  rlhf explain
  rlhf explain metrics
  rlhf explain metrics kl reward/quality best_of_4/win_rate
  rlhf explain metrics --json""",
    "report": """usage: rlhf report RUN [RUN …] [--output FILE]

Writes report.html into RUN, one file that opens without a network: curves, samples before and after, a token view.
Several runs give comparison.html, here: what differs in their configs, and what came of it.

examples
  rlhf report runs/2026-01-31_12-00-00_default
  rlhf report runs/2026-01-31_13-00-00_sweep/*
  rlhf report runs/a runs/b --output compared.html""",
    "chat": """usage: rlhf chat RUN [options]

Talk to what a run produced: a run folder, a pipeline folder, or any transformers checkpoint.

options
  --temperature X     from 0 (greedy) up (0.7)
  --top-p X           nucleus sampling, a share up to 1, which is off (1)
  --top-k N           the N likeliest tokens only; 0 is off (0)
  --max-new-tokens N  longest answer (256)
  --seed N            for answers that can be repeated
  --device NAME       auto, cpu, cuda or cuda:N (auto)

in the conversation
  /reset              forget what was said
  /help               what else there is

examples
  rlhf chat runs/2026-01-31_12-00-00_default
  rlhf chat runs/2026-01-31_12-00-00_ppo --temperature 0.3 --seed 1""",
    "bench": """usage: rlhf bench COMMAND [arguments]

commands
  list    ops, who computes them here, who does not and why, presets; [device=…] [dtype=…] [--json]
  run     measure: prints rows as they come; exit code 1 if one of ours computes something else than the definition
  report  FILE… --format md|csv|html [-o OUT]: tables for a README, all numbers, or a page with plots
  compare A B [--fail-over 10%]: exit code 1 if one of ours got slower by more than that, in units of eager's time
  step    [steps=5] [warmup=1] [out=FILE] [override …]: where a whole RL step's time goes; overrides as in rlhf train
  step    --peer trl [steps=5] [warmup=1] [out=FILE] [device=…] [threads=…] [hidden=256 …]: a GRPO step of ours and of
          TRL's, which has to be installed, at equal work; exit code 1 if it was not

keys of run (lists: op=shaped_gae,ppo_loss)
  op=         shaped_gae, ppo_loss, grpo_loss, ranking_loss, preference_loss, linear_policy_loss, token_logprobs,
              token_logprobs_entropy, logprobs_from_logits, attention, attention_shared, decode_attention,
              decode_attention_shared (all that the presets have)
  impl=       eager, vectorised, compile, definition, cpu, triton, cuda, torchrl, … (all that are here)
  preset=     ci, rlhf-7b, grpo-long, dpo, ranking, attention, logprobs, gpu, gpu-attention, gpu-logprobs (ci)
  shape=      such as 64x512, in place of the presets' shapes
  dtype=      float32, bfloat16, float16, float64 (float32)
  mode=       fwd, bwd, full: forward, backward or both (full)
  lengths=    full, ragged: sequences of different lengths (full)
  device=     auto, cpu, cuda or cuda:N (auto)
  threads=    CPU threads (torch's choice)
  reps=       most repetitions of an implementation (200)
  seconds=    most seconds of an implementation, three repetitions at least (1)
  out=        the JSON file to write

columns
  eager is the sequence of ops that TRL, verl and OpenRLHF run, vectorised the best plain PyTorch, definition what
  the kernels are tested against. × eager: ratio of medians. Peak MiB: above the inputs. Rate: the least bytes the op
  has to move (or flops) through the median; of roof: share of what a copy of as many bytes does in the same
  run; of DRAM: of a copy far larger than the caches. Error: from float64, relative, the definition's own beside it.
  Launches: ATen ops, kernels on a GPU. First call: with what is compiled in it.

examples
  rlhf bench list
  rlhf bench run op=shaped_gae preset=ci
  rlhf bench run preset=rlhf-7b impl=eager,vectorised,cpu out=results.json
  rlhf bench run op=ppo_loss shape=64x1024 mode=fwd,bwd,full dtype=float32,bfloat16
  rlhf bench run preset=attention lengths=full,ragged dtype=float32,bfloat16
  rlhf bench report results.json --format html
  rlhf bench compare before.json after.json --fail-over 10%
  rlhf bench step policy.hidden=256 algorithm.batch_size=32
  rlhf bench step --peer trl out=step.json""",
    "conformance": """usage: rlhf conformance [options]

Does an implementation compute what the papers say? Small golden vectors, with what a loop over Python floats makes of
them, for GAE, whitening, KL, policy and value losses, ranking and preference losses, group advantages, log-probs.
Exit code 1 where one of ours disagrees.

options
  --impl NAME         who is asked, several times for several: ours, ours.eager, ours.cpu, ours.triton, ours.cuda, trl,
                      trl.fused, torchrl, torchrl.vec, or anybody's as package.module:attribute (all that run here)
  --check NAME        a group such as gae, or one check such as gae.gaps; several times for several (all)
  --show NAME         print golden vectors, expected numbers and reasons instead of running
  --json FILE         write everything
  --strict            exit code 1 where anyone disagrees

Yours is an object or a module with some of the functions of rlhf_core/conformance/signatures.py: padded [B,T] tensors
and a mask. What it does not have, or raises NotImplementedError for, is not offered, which is no fault.

examples
  rlhf conformance
  rlhf conformance --impl ours --impl trl --impl torchrl
  rlhf conformance --impl my_package.losses:LOSSES --strict
  rlhf conformance --impl my_losses: --check gae --check policy_loss.clip_table
  rlhf conformance --show gae.gaps
  rlhf conformance --json conformance.json""",
    "doctor": """usage: rlhf doctor [--json]

Versions, device, instruction set, how the extension was built, which backend each kernel has here and why another is
missing, plugins that cannot be used, and whether the data are there. Imports everything, so it takes seconds.

examples
  rlhf doctor
  rlhf doctor --json""",
}


def help_text(command: str = "") -> str:
    """The help of one command, or of ``rlhf`` itself."""
    if command in GROUPS:
        return "\n".join(_hydra_help(command))
    if command in _SIMPLE:
        return _SIMPLE[command]
    commands = "\n".join(f"  {name:11} {text}" for name, text in COMMANDS.items())
    return f"""usage: rlhf COMMAND [arguments]

From a pretrained language model to one that people prefer, every part a plugin.

commands
{commands}

rlhf COMMAND --help says more. Tab completion: eval "$(rlhf -sc install=bash)"

examples
  rlhf pipeline                    pretrain, SFT, reward model, PPO: the embedded default
  rlhf list                        what can be plugged together
  rlhf info algorithm=ppo          what PPO can be told
  rlhf train algorithm=sft seed=1  one stage
  rlhf chat runs/…                 talk to the result"""


def _hydra_help(command: str) -> Iterator[str]:
    train = command == "train"
    yield f"usage: rlhf {command} [key=value …] [group=option …] [options]\n"
    yield f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}. Overrides follow Hydra's grammar, all of it.\n"
    yield "groups (rlhf info GROUP=OPTION tells more)"
    for group in GROUPS[command]:
        several = " (several: [a,b])" if group in SEVERAL else ""
        yield f"  {group:11} {', '.join(options(group)) or 'none installed'}{several}"
    yield "\nkeys"
    name = "TrainSettings" if train else "PipelineSettings"
    yield from _keys(describe_class("rlhf_core.settings", name).fields)
    yield f"\n{_OPTIONS}\n"
    yield _TRAIN_EXAMPLES if train else _PIPELINE_EXAMPLES


def _keys(fields: tuple[FieldDoc, ...]) -> Iterator[str]:
    for field in fields:
        if field.name not in (*KINDS, "stage_overrides"):
            default = "" if field.default is None else field.default.strip("'\"").replace("None", "null")
            yield f"  {field.name + '=' + default:32} {field.doc}"
