"""From a command line to plugin objects: Hydra's whole grammar, through its public entry points.

``launch`` is what ``rlhf train`` and ``rlhf pipeline`` call; ``compose_train`` composes one stage in-process.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, ListConfig, OmegaConf, open_dict

from rlhf_core import plugins
from rlhf_core.command_line import as_typed, command_line, nulls
from rlhf_core.errors import UserError
from rlhf_core.failure import report, resume_command
from rlhf_core.hydra_errors import about_config, owner_name
from rlhf_core.hydra_source import register
from rlhf_core.presets import conf_folder
from rlhf_core.settings import PipelineSettings, TrainSettings
from rlhf_core.stage_overrides import quoted, resolve_stage, stage_overrides

__all__ = ["Composed", "compose_train", "launch", "resolve_stage", "stage_overrides"]

S = TypeVar("S", TrainSettings, PipelineSettings)
_VERSION_BASE = {"version_base": "1.3"} if tuple(map(int, hydra.__version__.split(".")[:2])) < (1, 4) else {}


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
        task.resume, line = command_line(command, argv)
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
        UserError: bad input, in one line.
    """
    register()
    with _in_our_words():
        if GlobalHydra.instance().is_initialized():
            return _compose_train(overrides, folder, resume)
        with hydra.initialize_config_dir(str(conf_folder()), **_VERSION_BASE):
            return _compose_train(overrides, folder, resume)


def _compose_train(overrides: list[str], folder: Path, resume: bool) -> Composed[TrainSettings]:
    added = list(HydraConfig.get().searchpath) if HydraConfig.initialized() else []
    search = [f"hydra.searchpath=[{','.join(map(quoted, added))}]"] if added else []
    config = hydra.compose("train", [*search, *nulls(overrides)], return_hydra_config=True)
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
        job: DictConfig = HydraConfig.get()  # type: ignore[assignment]  # a HydraConf to the type checker only
        self.folder = Path(job.runtime.output_dir)
        with _variable("HYDRA_FULL_ERROR", self.full_error):
            try:
                return self._run(config, job)
            except Exception as error:
                if os.getpid() != self.process:
                    raise
                again = resume_command(self.command, self.folder)
                self.exit_code = max(self.exit_code, report(error, again, about_config(error, composing=False)))
                _remove_if_empty(self.folder)
                return None

    def _run(self, config: DictConfig, job: DictConfig) -> object:
        folder = Path(job.runtime.output_dir)
        overrides = as_typed([*_search_path(job), *job.overrides.task])
        if OmegaConf.select(job, "job.num", default=None) is not None:
            print(f"\n[{job.job.num}] {shlex.join(['rlhf', self.command, *overrides])}", flush=True)
        rest = (self.command, overrides, folder, self.argv, self.resume)
        with _in_our_words():
            composed = _composed(config, job.runtime.choices, *rest)
        # imported here: the one pulls in torch, and the other must not pay for it when composing fails
        if self.command == "pipeline":
            from rlhf_core import pipeline

            pipeline.run(composed)
            return None
        from rlhf_core import run

        return objective(run.train(composed), composed.settings.objective)


def objective(summary: dict[str, Any], name: str | None) -> object:
    """What a sweeper is told of a run: a number of its last evaluation, or the whole summary.

    Raises:
        UserError: nothing of that name was measured.
    """
    if name is None:
        return summary
    measured: dict[str, float] = summary["metrics"]
    if name not in measured:
        near = plugins.did_you_mean(name, measured)
        raise UserError(f"objective: {name} was not measured; there are {', '.join(sorted(measured)) or 'none'}{near}")
    return measured[name]


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
    _refuse_strays(config)
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


def _refuse_strays(config: DictConfig) -> None:
    """Values for a plugin that nobody chose, say in an experiment whose choice was overridden."""
    places = {kind: config.get(kind) for kind in plugins.KINDS if kind not in plugins.SEVERAL}
    for kind in plugins.SEVERAL:
        places |= {f"{kind}.{name}": node for name, node in (config.get(kind) or {}).items()}
    for path, node in places.items():
        cls = OmegaConf.get_type(node) if OmegaConf.is_config(node) else None
        if node is not None and (cls is None or plugins.loaded(cls) is None):
            kind, _, name = path.partition(".")
            choice = f"{kind}=[{name}]" if name else f"{kind}=NAME"
            raise UserError(f"{path}: has values, but no plugin is chosen there; add {choice}, or drop them: ~{path}")


def _refuse_unknown_keys(path: str, node: DictConfig) -> None:
    """``+algorithm.kl_coeff=1`` would set an attribute that nobody reads."""
    cls = OmegaConf.get_type(node)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # a dataclass, see _typed_nodes
    for key in node:
        if key not in known:
            near = plugins.did_you_mean(str(key), known)
            raise UserError(f"{path}.{key!s}".lstrip(".") + f": no such key in {owner_name(cls)}{near}")


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


def _search_path(job: DictConfig) -> list[str]:
    return [text for text in job.overrides.hydra if text.startswith("hydra.searchpath")]


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes the folder before the job; one that failed at once should leave none behind."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _in_our_words() -> Iterator[None]:
    """What Hydra, OmegaConf or a plugin's ``__post_init__`` refuse is bad input, and a ``UserError`` from here on."""
    try:
        yield
    except Exception as error:
        text = about_config(error, composing=True)
        if not text:
            raise
        raise UserError(text) from error


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
