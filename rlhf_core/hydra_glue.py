"""From a command line to plugin objects: Hydra's whole grammar, through its public entry points.

``launch`` is what ``rlhf train`` and ``rlhf pipeline`` call; ``compose_train`` composes one stage in-process.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, ListConfig, OmegaConf, open_dict

from rlhf_core import plugins
from rlhf_core.errors import UserError
from rlhf_core.failure import report, resume_command
from rlhf_core.hydra_errors import about_config, owner_name
from rlhf_core.hydra_source import register
from rlhf_core.presets import conf_folder
from rlhf_core.settings import PipelineSettings, TrainSettings
from rlhf_core.stage_overrides import pack, quoted, resolve_stage, stage_overrides, unpack

__all__ = ["Composed", "compose_train", "launch", "resolve_stage", "stage_overrides"]

S = TypeVar("S", TrainSettings, PipelineSettings)
_VERSION_BASE = {"version_base": "1.3"} if tuple(map(int, hydra.__version__.split(".")[:2])) < (1, 4) else {}

_NULLS = tuple(f"{group}=null" for group in (*plugins.KINDS, "experiment"))


@dataclass(frozen=True)
class Composed(Generic[S]):
    """A composed configuration and where it came from."""

    settings: S
    """the objects: plugin instances inside, all values checked"""
    config: DictConfig
    """the same as a resolved config, for config.yaml"""
    overrides: list[str]
    """as typed (for overrides.txt); composing them again gives the same config"""
    choices: dict[str, str]
    """config group → name, plugins inside others too (``reward@reward.parts.brief``); for ``plugins.provenance``"""
    folder: Path
    """the run folder"""
    command: str = "train"
    argv: list[str] = field(default_factory=list)
    """the arguments after ``rlhf <command>``"""
    resume: bool = False
    """the run in ``folder`` is to be continued"""


def launch(command: str, argv: list[str]) -> int:
    """Run ``rlhf <command> <argv>`` through Hydra.

    Args:
        command: ``train`` or ``pipeline``; also the name of the primary config.
        argv: overrides and Hydra's own options.

    Returns:
        The exit code. Errors are reported here, one line each, and never raised.
    """
    task = _Task(command, argv)
    try:
        task.resume, line = _command_line(command, argv)
        register()
        with _variable("HYDRA_FULL_ERROR", "1"), _arguments(["rlhf", *line]):
            # full errors: Hydra then raises what went wrong, and we say it in one line
            hydra.main(config_path=str(conf_folder()), config_name=command, **_VERSION_BASE)(task)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (Exception, KeyboardInterrupt) as error:
        # where a job failed, its line is out already; what a sweeper makes of the missing result is noise
        known = about_config(error, composing=task.folder is None)
        return task.exit_code or report(error, resume_command(command, task.folder), known)
    return task.exit_code


def compose_train(overrides: list[str], folder: Path, resume: bool = False) -> Composed[TrainSettings]:
    """Compose what ``rlhf train <overrides>`` would run, in this process.

    Works inside a ``rlhf pipeline`` job, whose ``--config-dir`` and search path then hold here too, and outside.

    Args:
        overrides: as typed after ``rlhf train``.
        folder: the run folder; nothing is created.
        resume: the run in ``folder`` is to be continued.

    Raises:
        UserError: bad input, in one line. Hydra's own exceptions come through, for ``hydra_errors.explain``.
    """
    register()
    if GlobalHydra.instance().is_initialized():
        return _compose_train(overrides, folder, resume)
    with hydra.initialize_config_dir(str(conf_folder()), **_VERSION_BASE):
        return _compose_train(overrides, folder, resume)


def _compose_train(overrides: list[str], folder: Path, resume: bool) -> Composed[TrainSettings]:
    added = list(HydraConfig.get().searchpath) if HydraConfig.initialized() else []
    search = [f"hydra.searchpath=[{','.join(map(quoted, added))}]"] if added else []
    config = hydra.compose("train", [*search, *_nulls(overrides)], return_hydra_config=True)
    with open_dict(config):
        runtime = config.pop("hydra").runtime
    return _composed(config, runtime.choices, "train", overrides, folder, overrides, resume)


class _Task:
    """What Hydra calls for each job. An object, not a closure, so that launchers can send it to workers."""

    def __init__(self, command: str, argv: list[str]) -> None:
        self.command = command
        self.argv = argv
        self.resume = False
        self.folder: Path | None = None
        self.exit_code = 0
        self.process = os.getpid()
        self.full_error = os.environ.get("HYDRA_FULL_ERROR")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register()

    def __call__(self, config: DictConfig) -> object:
        """Run one job; its failure is reported here, and the next job of a sweep still runs."""
        job = HydraConfig.get()
        self.folder = Path(job.runtime.output_dir)
        with _variable("HYDRA_FULL_ERROR", self.full_error):
            try:
                return self._run(config, job)
            except Exception as error:
                if os.getpid() != self.process:
                    raise
                self.exit_code = report(error, resume_command(self.command, self.folder), about_config(error, composing=False))
                _remove_if_empty(self.folder)
                return None

    def _run(self, config: DictConfig, job: DictConfig) -> object:
        folder = Path(job.runtime.output_dir)
        overrides = _as_typed([*_search_path(job), *job.overrides.task])
        if OmegaConf.select(job, "job.num", default=None) is not None:
            print(f"\n[{job.job.num}] rlhf {self.command} {' '.join(overrides)}", flush=True)
        rest = (self.command, overrides, folder, self.argv, self.resume)
        composed = _composed(config, job.runtime.choices, *rest)
        # imported here: the one pulls in torch, and the other must not pay for it when composing fails
        if self.command == "pipeline":
            from rlhf_core import pipeline

            return pipeline.run(composed)
        from rlhf_core import run

        return run.train(composed)


def _composed(
    config: DictConfig,
    chosen: DictConfig,
    command: str,
    overrides: list[str],
    folder: Path,
    argv: list[str],
    resume: bool,
) -> Composed[Any]:
    choices = {
        str(group): ",".join(names) if isinstance(names, list | ListConfig) else str(names)
        for group, names in chosen.items()
        if names is not None and not str(group).startswith("hydra/")
    }
    for path, node in _typed_nodes(config, ""):
        _refuse_unknown_keys(path, node)
        _note_plugin(choices, path, node)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{', '.join(missing)}: required; give it as {missing[0]}=VALUE")
    config.run_dir = str(folder)
    settings = OmegaConf.to_object(config)
    resolved = deepcopy(config)
    OmegaConf.resolve(resolved)
    return Composed(settings, resolved, overrides, choices, folder, command, argv, resume)


def _typed_nodes(node: Container, path: str) -> Iterator[tuple[str, DictConfig]]:
    """Every part of a config that is made from a dataclass, with its key."""
    if node._is_none() or node._is_missing():
        return
    if isinstance(node, DictConfig) and is_dataclass(OmegaConf.get_type(node)):
        yield path, node
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))  # type: ignore[arg-type]
    for key in keys:
        child = node._get_node(key)
        if isinstance(child, Container):
            yield from _typed_nodes(child, f"{path}.{key}".lstrip("."))


def _refuse_unknown_keys(path: str, node: DictConfig) -> None:
    """``+algorithm.kl_coeff=1`` would set an attribute that nobody reads."""
    cls = OmegaConf.get_type(node)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # a dataclass, see _typed_nodes
    for key in node:
        if key not in known:
            near = plugins.did_you_mean(str(key), known)
            raise UserError(f"{path}.{key}".lstrip(".") + f": no such key in {owner_name(cls)}{near}")


def _note_plugin(choices: dict[str, str], path: str, node: DictConfig) -> None:
    """Add what Hydra's own list of choices lacks: members of a list, and the plugin behind a preset."""
    cls = OmegaConf.get_type(node)
    info = plugins.loaded(cls) if cls is not None else None
    if info is None:
        return
    group = info.kind if path == info.kind else f"{info.kind}@{path}"
    if group in choices and choices[group] != info.name:
        group = f"{info.kind}@{path}"
    if choices.get(group) != info.name:
        choices[group] = info.name


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _command_line(command: str, argv: list[str]) -> tuple[bool, list[str]]:
    """Hydra's arguments for ours: options first, ``resume`` and stage overrides put into Hydra's terms."""
    parser = _Parser(prog=f"rlhf {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    for flag in ("--hydra-help", "--version", "--resolve"):
        parser.add_argument(flag, action="store_true")
    for short, flag in (("-r", "--run"), ("-m", "--multirun"), ("-sc", "--shell-completion")):
        parser.add_argument(short, flag, action="store_true")
    for short, flag in (("-p", "--package"), ("-cp", "--config-path"), ("-cn", "--config-name"), ("-cd", "--config-dir")):
        parser.add_argument(short, flag)
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
    return resume, [*options, *_nulls(overrides)]


def _nulls(overrides: list[str]) -> list[str]:
    """``reward=null`` in Hydra's words: a list of none. (Its ``~reward`` would still load the default.)"""
    return [text.replace("=null", "=[]") if text in _NULLS else text for text in overrides]


def _as_typed(overrides: list[str]) -> list[str]:
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


def _search_path(job: DictConfig) -> list[str]:
    return [text for text in job.overrides.hydra if text.startswith("hydra.searchpath")]


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes the folder before the job; one that failed at once should leave none behind."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    before = os.environ.get(name)
    _set_variable(name, value)
    try:
        yield
    finally:
        _set_variable(name, before)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
