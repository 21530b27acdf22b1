"""What is typed after ``rlhf train`` and ``rlhf pipeline``, in Hydra's terms, and back.

Three things are ours: ``resume=RUN``, overrides for one stage, and ``group=null``.
"""

import argparse
from pathlib import Path
from typing import NoReturn

from rlhf_core.errors import UserError
from rlhf_core.plugins import KINDS
from rlhf_core.stage_overrides import pack, quoted, unpack

_NULLS = tuple(f"{group}=null" for group in (*KINDS, "experiment"))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def command_line(command: str, argv: list[str]) -> tuple[bool, list[str]]:
    """Put what was typed after ``rlhf <command>`` into Hydra's terms.

    Returns:
        Whether a run is resumed, and Hydra's arguments: options first, then overrides.

    Raises:
        UserError: an unknown option, or nothing to resume.
    """
    parser = _Parser(prog=f"rlhf {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    for flag in ("--hydra-help", "--version", "--resolve"):
        parser.add_argument(flag, action="store_true")
    for short, flag in (("-r", "--run"), ("-m", "--multirun"), ("-sc", "--shell-completion")):
        parser.add_argument(short, flag, action="store_true")
    for short, flag in (("-p", "--package"), ("-cp", "--config-path"), ("-cn", "--config-name")):
        parser.add_argument(short, flag)
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    infos = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    if any(text in ("-i", "--info") for text in argv):
        argv = _bare_info(argv, infos)
    parser.add_argument("-i", "--info", choices=infos)
    given = vars(parser.parse_intermixed_args(argv))
    overrides: list[str] = given.pop("overrides")
    options = [_option(name, value) for name, value in given.items() if value]
    if given["shell_completion"]:
        return False, [*options, *overrides]
    resume, overrides = _resume(command, overrides, given["multirun"])
    if command == "pipeline":
        overrides = pack(overrides, given["multirun"])
    return resume, [*options, *nulls(overrides)]


def nulls(overrides: list[str]) -> list[str]:
    """``reward=null`` in Hydra's words: a list of none; its ``~reward`` would still load the default."""
    return [text.replace("=null", "=[]") if text in _NULLS else text for text in overrides]


def as_typed(overrides: list[str]) -> list[str]:
    """What a job got from Hydra, in the words of the command line."""
    return unpack([null if (null := text.replace("=[]", "=null")) in _NULLS else text for text in overrides])


def _bare_info(argv: list[str], infos: list[str]) -> list[str]:
    """``--info reward=x`` means all of it: argparse would take the override for the option's value."""
    following = [*argv[1:], ""]
    return [
        f"--info={'all' if after not in infos else after}" if text in ("-i", "--info") else text
        for i, (text, after) in enumerate(zip(argv, following, strict=True))
        if not (i > 0 and argv[i - 1] in ("-i", "--info") and text in infos)
    ]


def _option(name: str, value: str | bool) -> str:
    flag = "--" + name.replace("_", "-")
    return flag if value is True else f"{flag}={value}"


def _resume(command: str, overrides: list[str], multirun: bool) -> tuple[bool, list[str]]:
    """Replace ``resume=RUN`` by what that run was started with, followed by what is new."""
    asked = [text for text in overrides if text.startswith("resume=")]
    if not asked:
        return False, overrides
    if multirun:
        raise UserError(f"{asked[-1]}: cannot go with -m; resume the runs of a sweep one by one")
    folder = Path(asked[-1].partition("=")[2].strip("'\"")).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{asked[-1]}: no such folder; give the run folder that rlhf {command} printed")
    if command == "train" and (folder / "pipeline.json").exists():
        raise UserError(f"{asked[-1]}: this is the folder of a pipeline; use rlhf pipeline {asked[-1]}")
    if not (folder / "overrides.txt").exists():
        raise UserError(f"{asked[-1]}: no run in there (overrides.txt is missing)")
    before = (folder / "overrides.txt").read_text(encoding="utf-8").splitlines()
    fresh = [text for text in overrides if text not in asked]
    return True, [*(line for line in before if line.strip()), *fresh, f"hydra.run.dir={quoted(str(folder))}"]
