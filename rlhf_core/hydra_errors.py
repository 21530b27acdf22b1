"""What Hydra's and OmegaConf's exceptions mean, in one line: the key, what came, what was expected, what is near."""

import dataclasses
import re
from typing import get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from rlhf_core import plugins
from rlhf_core.failure import chain, flat
from rlhf_core.plugins import did_you_mean


def about_config(error: BaseException, composing: bool) -> str:
    """What a failed composition means for the one who typed it; empty where ``error`` is about something else.

    Args:
        error: what was raised.
        composing: the error came up before the run began, where a ValueError too is about the input.
    """
    links = list(chain(error))
    about = next((link for link in links if isinstance(link, HydraException | OmegaConfBaseException)), None)
    if about is None:
        return flat(error) if composing and isinstance(error, ValueError | TypeError) else ""
    if isinstance(about, OverrideParseException):
        cause = flat(about.message.partition("See http")[0]).removeprefix(f"Error parsing override '{about.override}' ")
        return f"{about.override}: cannot be read as key=value; {cause}"
    if isinstance(about, MissingConfigException):
        return _missing_config(about)
    for link in links:
        if isinstance(link, OmegaConfBaseException):
            return _inside_file(about) + _about_value(link)
    return _composition(flat(about) or type(about).__name__)


def _inside_file(error: BaseException) -> str:
    found = re.match(r"In '([^']+)'", str(error))
    return f"{found[1]}.yaml: " if found and found[1] not in ("train", "pipeline") else ""


def _composition(text: str) -> str:
    found = re.match(r"Ambiguous value for argument '(.*?)' 1\.", text) or re.match(
        r"Sweep parameters '(.*)' requires --multirun", text
    )
    if found:
        key, _, value = found[1].partition("=")
        return f"{found[1]}: several values need -m to sweep over them; for a list write {key}=[{value}]"
    if "does not support sweep type : INTERVAL_SWEEP" in text:
        return "interval(): Hydra's basic sweeper takes lists and ranges only; write key=a,b,c or key=range(a,b)"
    found = re.match(r"Multiple values for (\S+)\. ", text)
    if found:
        return f"{found[1]}: chosen twice; to replace the first choice write it without +"
    found = re.search(r"but config group '([^']+)' does not exist", text)
    if found:
        return f"{found[1]}: no such config group{did_you_mean(found[1], plugins.KINDS)}"
    return text


def _missing_config(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return f"{name}: no such config on the search path (see --info searchpath)"
    options = sorted({*(error.options or ()), *(plugins.available(group) if group in plugins.KINDS else ())})
    where = f"; available: {', '.join(options)}" if options else ""
    return f"{_inside_file(error)}{group}={name}: no such {group}{where}{did_you_mean(name, options)}"


def _about_value(error: OmegaConfBaseException) -> str:
    key = str(error.full_key or error.key or "")
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: required; give it as {key}=VALUE"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return _unknown_key(error, key)
    if isinstance(error, ValidationError) and key:
        return f"{key}: expected {_expected(error)}, got {error.value!r} ({type(error.value).__name__})"
    text = str(error.msg or error).partition("\n")[0].strip()
    return f"{key}: {text}" if key else text


def _unknown_key(error: OmegaConfBaseException, key: str) -> str:
    parent, _, last = key.rpartition(".")
    if parent in plugins.KINDS and error.object_type in (None, dict):
        chosen = f"{parent}=[{last}]" if parent in plugins.SEVERAL else f"{parent}=NAME"
        return f"{key}: no {parent} of this name is chosen; choose it with {chosen}"
    node = error.parent_node
    options = [str(name) for name in node] if isinstance(node, DictConfig) and not node._is_none() else []
    owner = owner_name(error.object_type) or parent or "the configuration"
    near = did_you_mean(last, options)
    listed = f"; it has: {', '.join(options)}" if options and not near else ""
    add = f"; +{key}=… adds it" if error.object_type is dict else ""
    return f"{key}: no such key in {owner}{near or listed}{add}"


def owner_name(cls: object) -> str:
    """What people call the object with these fields: a plugin's name, or a part of the settings."""
    info = plugins.loaded(cls) if isinstance(cls, type) else None
    if info is not None:
        return info.name
    names = {"TrainSettings": "rlhf train", "PipelineSettings": "rlhf pipeline"}
    name = getattr(cls, "__name__", "") if dataclasses.is_dataclass(cls) else ""
    return names.get(name, name.lower())


def _expected(error: ValidationError) -> str:
    cls = error.object_type
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        hint = get_type_hints(cls).get(str(error.key))
        if hint is not None:
            plain = isinstance(hint, type) and "[" not in str(hint)
            return f"{hint.__name__}" if plain else str(hint).replace("typing.", "")
    found = re.search(r"could not be converted to (\w+)", str(error))
    return found[1].lower() if found else "another type"
