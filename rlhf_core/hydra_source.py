"""How Hydra gets to see plugins: a config source ``plugin://`` and its place on the search path.

Search order is first match wins: the core ``conf/``, then plugins and the root schemas, then YAML presets of
distributions, then what the user adds (``--config-dir``, ``hydra.searchpath``). So nobody shadows a schema.
"""

from datetime import datetime
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_core import plugins, presets
from rlhf_core.errors import UserError
from rlhf_core.failure import flat
from rlhf_core.settings import PipelineSettings, TrainSettings

SCHEMAS: dict[str, type] = {"train": TrainSettings, "pipeline": PipelineSettings}
"""Served as ``schema/train`` and ``schema/pipeline``, so that YAML files hold differences only."""


class PluginSource(ConfigSource):
    """Serves the config groups that plugins make up. Hydra calls these methods by keyword."""

    @staticmethod
    def scheme() -> str:
        """The scheme this source answers to."""
        return "plugin"

    def load_config(self, config_path: str) -> ConfigResult:
        """Import the chosen class and hand out its dataclass, typed."""
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        try:
            cls = SCHEMAS[name] if group == "schema" else plugins.load(group, name)
            config = OmegaConf.structured(cls)
        except UserError as error:
            raise ConfigCompositionException(str(error)) from error
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            problem = _unfit(group, name, error)
            raise ConfigCompositionException(problem) from UserError(problem)
        return ConfigResult(self.provider, self.full_path(), config, {"package": _package(group, name)})

    def is_group(self, config_path: str) -> bool:
        """Whether there are configs under this path."""
        return config_path == "" or config_path.rstrip("/") in (*plugins.KINDS, "schema")

    def is_config(self, config_path: str) -> bool:
        """Whether a plugin or schema of this name is there; metadata only."""
        group, _, name = config_path.removesuffix(".yaml").partition("/")
        return name in self._names(group)

    def available(self) -> bool:
        """Always: entry points need no folder."""
        return True

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Groups at the root, plugin names in a group; the schemas stay out of help and completion."""
        path = config_path.strip("/")
        if path == "":
            return [] if results_filter == ObjectType.CONFIG else sorted(plugins.KINDS)
        if results_filter == ObjectType.GROUP or path == "schema":
            return []
        return sorted(self._names(path))

    @staticmethod
    def _names(group: str) -> set[str]:
        if group == "schema":
            return set(SCHEMAS)
        return set(plugins.available(group)) if group in plugins.KINDS else set()


class PluginSearchPath(SearchPathPlugin):
    """Puts plugins and presets behind the core ``conf/``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append ``plugin://rlhf`` and one ``file://`` folder a distribution with presets."""
        search_path.append("rlhf", f"{PluginSource.scheme()}://rlhf")
        for distribution, folder in presets.folders():
            # never pkg://: Hydra imports those on every command, and one that raises kills them all
            search_path.append(distribution, f"file://{folder}")


def register() -> None:
    """Make Hydra know the source, the search path and our resolvers; harmless when repeated."""
    Plugins.instance().register(PluginSource)
    Plugins.instance().register(PluginSearchPath)
    # ${stage:x} and ${stages:x} are for the pipeline, which knows folders only later: OmegaConf leaves them as they are
    OmegaConf.register_new_resolver("stage", lambda name: f"${{stage:{name}}}", replace=True)
    OmegaConf.register_new_resolver("stages", lambda name: f"${{stages:{name}}}", replace=True)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True, use_cache=True)


def _package(group: str, name: str) -> str | None:
    """Where the config lands: several trackers live side by side, each under its name."""
    if group == "schema":
        return "_global_"
    return f"_global_.{group}.{name}" if group in plugins.SEVERAL else None


def _unfit(group: str, name: str, error: Exception) -> str:
    origin = plugins.available(group)[name].origin if group in plugins.KINDS else ""
    cause = flat(error)
    return f"{group}={name}: its fields cannot be a configuration ({origin}): {cause}"


def _run_folder(run_dir: str | None, what: str | None) -> str:
    """``run_dir`` if it was given, else a name under ``runs/`` that nobody uses yet."""
    if run_dir is not None:
        return str(run_dir)
    name = f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}_{what}"
    number = 1
    while Path(name if number == 1 else f"{name}_{number}").exists():
        number += 1
    return name if number == 1 else f"{name}_{number}"
