"""Tab completion of what metadata can answer: commands, config groups and their options, root keys."""

from dataclasses import fields

from rlhf_core.help import COMMANDS, GROUPS
from rlhf_core.plugins import KINDS, available
from rlhf_core.presets import options
from rlhf_core.settings import PipelineSettings, TrainSettings

BENCH = ("list", "run", "report", "compare", "step")
_SETTINGS = {"train": TrainSettings, "pipeline": PipelineSettings}


def candidates(line: str) -> list[str] | None:
    """Completions of the last word of a command line.

    Returns:
        Whole words; None where the keys of chosen plugins are asked for, which takes composing the config.
    """
    words = line.split()
    word = "" if line.endswith(" ") or not words else words.pop()
    if len(words) <= 1:
        return [command for command in COMMANDS if command.startswith(word)]
    command = words[1]
    if command in _SETTINGS:
        return _overrides(command, word)
    if command == "list":
        return [text for text in (*KINDS, "--json") if text.startswith(word)]
    if command == "info":
        return [text for kind in KINDS for name in available(kind) if (text := f"{kind}={name}").startswith(word)]
    if command == "bench":
        return [text for text in BENCH if len(words) == 2 and text.startswith(word)]
    return []  # report and chat take folders: the shell's own completion


def hydra_line(line: str) -> tuple[str, str]:
    """The command, and the line without it and without what Hydra's completion would stumble over."""
    program, command, *typed = line.split()
    *before, word = typed if not line.endswith(" ") else [*typed, ""]
    known = [text for text in before if "=" in text and not text.startswith(("resume=", "-"))]
    nulls = [text.replace("=null", "=[]") if text.partition("=")[0] in KINDS else text for text in known]
    return command, " ".join([program, *nulls, word])


def _overrides(command: str, word: str) -> list[str] | None:
    sign = "+" if word.startswith("+") else ""
    group, equals, _ = word.removeprefix("+").partition("=")
    group = group.partition("@")[0]
    if equals and group in GROUPS[command]:
        before = word[: word.index("=") + 1]
        return [text for name in options(group) if (text := before + name).startswith(word)]
    if equals or "." in word or "/" in word:
        return None
    roots = [f"{field.name}{_ending(command, field.name)}" for field in fields(_SETTINGS[command])]
    plain = [*(f"{group}=" for group in GROUPS[command]), *roots, "resume=", "-m", "--cfg", "--info", "--config-dir"]
    return sorted({text for text in plain if text != "stage_overrides." and text.startswith(word.removeprefix(sign))})


def _ending(command: str, name: str) -> str:
    nested = ("trainer", "kernels", "stages", "stage_overrides", *KINDS)
    return "." if name in nested else "="
