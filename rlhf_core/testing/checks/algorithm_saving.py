"""What save() has to write: a checkpoint that anybody can open, of what was trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ...language_model import LanguageModel
from ...scalar_model import ScalarModel
from ..check import Checks, NotApplicable, fail, fail_if
from ..world import ASK, END, LEFT, OTHER, RIGHT, World, word_tokenizer
from .algorithm_stage import Stage, fast

CHECKS = check = Checks()

ROWS = ([ASK, RIGHT, END], [ASK, OTHER, LEFT, END], [OTHER, OTHER, ASK, ASK, RIGHT])
"""What models are compared on."""


@check(
    "save(folder) makes the folder and writes a transformers checkpoint: config.json, safetensors, the tokenizer",
    why="the next stage, and anybody without this framework, starts from it",
    cure="call save(folder) of the LanguageModel or ScalarModel, or save_pretrained of its model and of its tokenizer",
)
def saves_a_plain_checkpoint(plugin: Any, world: World) -> None:
    """A stage without steps writes what it likes, once it has evaluated."""
    stage, folder = _trained(plugin, world)
    files = {path.name for path in folder.rglob("*")}
    if stage.trainer.total == 0:
        fail_if(not files, came="save() wrote nothing")
        return
    missing = [name for name in ("config.json", "tokenizer.json", "tokenizer_config.json") if name not in files]
    weights = [name for name in files if name.endswith(".safetensors")]
    if missing or not weights:
        fail(
            f"save() wrote {', '.join(sorted(files)) or 'nothing'}; missing: {', '.join(missing or ['*.safetensors'])}"
        )
    opened(folder)
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    fail_if(
        vocabulary != word_tokenizer().get_vocab(),
        came=f"the saved tokenizer has {len(vocabulary)} words, others than the policy's",
    )


@check(
    "the saved checkpoint computes what the trained model computes",
    why="all that was learned is lost if the start, the reference or another model is saved",
    cure="save the model whose parameters setup() returned, as it is at the end",
)
def saves_what_was_trained(plugin: Any, world: World) -> None:
    """Log-probs or scores of a few rows, after two steps."""
    stage, folder = _trained(plugin, world)
    trained = _model(stage)
    if stage.trainer.total == 0:
        raise NotApplicable("it trains nothing: total_steps is 0")
    if not (folder / "config.json").exists():
        raise NotApplicable("it saves no transformers checkpoint; another check says so")
    if trained is None:  # none that the policy plugin made: what is saved has to change, at least
        _refuse_the_start(plugin, world, folder)
        return
    names = ("a language model", "a model of scores")
    scores = isinstance(trained, ScalarModel)
    fail_if(scores_of(folder) != scores, came=f"{names[not scores]} was saved, but {names[scores]} was trained")
    saved = opened(folder)
    far = _distance(saved, trained)
    if not far <= 0.03:
        start = _distance(saved, _model(Stage(world, plugin)))
        told = "; it is the model as it was before training" if start <= 1e-4 else ""
        fail(f"{'scores' if scores else 'log-probs'} of what was saved are up to {far:.3g} away from the model's{told}")


def _trained(plugin: Any, world: World) -> tuple[Stage, Path]:
    stage = Stage(world, fast(plugin))
    stage.algorithm.evaluate(0)
    for step in range(min(2, stage.trainer.total)):
        for minibatch in stage.minibatches(step):
            stage.update(stage.gradients(minibatch))
    folder = world.new_folder() / "result"
    stage.algorithm.save(folder)
    return stage, folder


def _refuse_the_start(plugin: Any, world: World, folder: Path) -> None:
    start = world.new_folder() / "result"
    Stage(world, plugin).algorithm.save(start)
    before, after = opened(start).state_dict(), opened(folder).state_dict()
    moved = any(not torch.equal(tensor, before[name]) for name, tensor in after.items() if name in before)
    fail_if(not moved, came="what was saved after two steps is what is saved before training")


def _model(stage: Stage) -> LanguageModel | ScalarModel | None:
    policy: LanguageModel | None = stage.made(LanguageModel)
    scorer: ScalarModel | None = stage.made(ScalarModel)
    return scorer if policy is None else policy


def _distance(saved: Any, model: Any) -> float:
    tell = plain_scores if isinstance(model, ScalarModel) else plain_logprobs
    return float((tell(saved, ROWS) - tell(model.model, ROWS)).abs().max())


def scores_of(folder: Path) -> bool:
    """Whether a checkpoint is one of a model that gives scores."""
    kind = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    return str(kind[0]).endswith("SequenceClassification")


def opened(folder: Path) -> Any:
    """A checkpoint, by transformers alone."""
    kind = AutoModelForSequenceClassification if scores_of(folder) else AutoModelForCausalLM
    return kind.from_pretrained(folder).eval()


def plain_logprobs(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Log-probs (nats) of every word after every prefix, of one row after the other."""
    with torch.no_grad():
        outputs = [model(torch.tensor([row], device=model.device)).logits[0] for row in rows]
    return torch.cat([logits.float().log_softmax(-1).flatten() for logits in outputs]).cpu()


def plain_scores(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """``[B]`` scores."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row], device=model.device)).logits[0].float() for row in rows]).cpu()
