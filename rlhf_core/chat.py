"""``rlhf chat RUN``: which checkpoint a folder means, and how to sample from it; the talk itself is chat_session.py."""

import argparse
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError
from .plugins import did_you_mean

EXAMPLES = """examples
  rlhf chat runs/2026-01-31_12-00-00_default
  rlhf chat runs/2026-01-31_12-00-00_ppo --temperature 0.3 --seed 1
  echo "What is the sea?" | rlhf chat runs/sft --temperature 0"""

LIMITS: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0, 100, "a number from 0 (greedy) to 100"),
    "top_p": (float, 1e-6, 1, "a share above 0, up to 1 (off)"),
    "top_k": (int, 0, 10**9, "a whole number from 0 (off)"),
    "max_new_tokens": (int, 1, 10**9, "a whole number from 1"),
    "seed": (int, 0, 2**63 - 1, "a whole number from 0"),
}


@dataclass
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.7
    """divides the logits; 0 takes the likeliest token"""
    top_p: float = 1.0
    """draws from the likeliest tokens that together have this probability"""
    top_k: int = 0
    """draws from this many of the likeliest tokens; 0 from all"""
    max_new_tokens: int = 256
    """longest answer, in tokens"""
    seed: int | None = None
    """of the random numbers; none: new ones each time"""

    def set(self, name: str, text: str) -> None:
        """Set one option from its text; raises ``UserError`` that says what is allowed."""
        name = name.replace("-", "_")
        if name not in LIMITS:
            raise UserError(f"{name}: no such option; there are {', '.join(LIMITS)}{did_you_mean(name, LIMITS)}")
        kind, low, high, expected = LIMITS[name]
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # false for nan, too
            raise UserError(f"{name}: got {text!r}, expected {expected}")
        setattr(self, name, value)

    def generation(self) -> dict[str, Any]:
        """The arguments of ``generate`` that draw the next token."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}

    def __str__(self) -> str:
        """All options on one line."""
        return "  ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


def main(argv: list[str]) -> int:
    """Talk to the language model in a folder until the input ends.

    Args:
        argv: the words after ``rlhf chat``.

    Returns:
        The exit code, 0.

    Raises:
        UserError: an option is wrong, or the folder holds no language model.
    """
    words = _parser().parse_args(argv)
    sampling = Sampling()
    for name in LIMITS:
        if (text := getattr(words, name)) is not None:
            sampling.set(name, text)
    folder = language_model_folder(Path(words.run))

    from .chat_session import Session  # torch and transformers take seconds: a typo above is told at once

    Session(folder, sampling, words.device).run()
    return 0


def language_model_folder(run: Path) -> Path:
    """The checkpoint to talk to: a run's, that of a pipeline's last stage with a language model, or ``run`` itself."""
    if not run.is_dir():
        siblings = [str(folder) for folder in run.parent.glob("*/")]
        raise UserError(f"{run}: there is no such folder{did_you_mean(str(run), siblings)}")
    if (run / "pipeline.json").exists():
        return _last_stage(run)
    folder = run if (run / "config.json").exists() else run / "result"
    if not (folder / "config.json").exists():
        if (run / "config.yaml").exists():
            raise UserError(f"{run}: the run has no result yet; go on with it by rlhf train resume={run}")
        raise UserError(f"{run}: neither a run, nor a pipeline, nor a checkpoint (it has no config.json)")
    if not _speaks(folder):
        raise UserError(f"{folder}: holds {_architecture(folder)}, which scores text; chat needs a language model")
    return folder


def _last_stage(pipeline: Path) -> Path:
    stages = _read(pipeline / "pipeline.json").get("stages", [])
    for stage in reversed(stages):
        folder = pipeline / str(stage.get("folder")) / "result"
        if stage.get("status") == "done" and (folder / "config.json").exists() and _speaks(folder):
            return folder
    states = ", ".join(f"{stage.get('name')} {stage.get('status')}" for stage in stages)
    raise UserError(f"{pipeline}: no finished stage yields a language model ({states or 'no stages'})")


def _speaks(checkpoint: Path) -> bool:
    return _architecture(checkpoint).endswith(("ForCausalLM", "LMHeadModel"))


def _architecture(checkpoint: Path) -> str:
    architectures = _read(checkpoint / "config.json").get("architectures") or ["a model of no stated architecture"]
    return str(architectures[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return content if isinstance(content, dict) else {}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"rlhf chat: {message}; rlhf chat --help says more")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rlhf chat",
        description="Talk to the language model of a run, a pipeline, or a transformers checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, a pipeline folder, or a checkpoint")
    defaults = Sampling()
    for name, (kind, _, _, expected) in LIMITS.items():
        metavar = "X" if kind is float else "N"
        default = getattr(defaults, name)
        shown = f"{expected} (default {default})" if default is not None else expected
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=metavar, help=shown)
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    return parser
