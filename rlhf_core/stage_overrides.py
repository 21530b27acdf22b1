"""Overrides for one stage of a pipeline: ``rlhf pipeline ppo.algorithm.kl_coef=0.1``.

Hydra composes the pipeline's config, not the stage's, so such an override travels as a string in
``stage_overrides.<stage>.k<i>``. Each is one key of Hydra's, so that sweeps over it work as over any other.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import OverrideParseException

from rlhf_core.errors import UserError
from rlhf_core.plugins import KINDS, SEVERAL, did_you_mean
from rlhf_core.rounds import turns
from rlhf_core.settings import PipelineSettings

_STORE = "stage_overrides"
_ROOTS = (*PipelineSettings.__dataclass_fields__, "pipeline", "hydra")
_SIGN = re.compile(r"\+\+|\+|~|")


def pack(overrides: Sequence[str], multirun: bool) -> list[str]:
    """Rewrite the overrides that are meant for a stage; the others stay as they are."""
    packed: list[str] = []
    for index, text in enumerate(overrides):
        parsed = _parse(text)
        key = parsed.key_or_group if parsed else ""
        if key in KINDS:
            raise UserError(f"{text}: say for which stage, e.g. STAGE.{text.lstrip('+~')}")
        stage, dot, _ = key.partition(".")
        if parsed is None or not dot or stage in _ROOTS or "/" in stage:
            packed.append(text)
        else:
            values = ",".join(quoted(value) for value in _values(parsed, stage, multirun))
            packed.append(f"+{_STORE}.{stage}.k{index}={values}")
    return packed


def unpack(overrides: Iterable[str]) -> list[str]:
    """The reverse of :func:`pack`, as people typed it: for overrides.txt and progress lines."""
    return [_unpack_one(text) for text in overrides]


def stage_overrides(settings: PipelineSettings) -> dict[str, list[str]]:
    """The overrides of each stage that has some (``ppo``: in all rounds; ``ppo_2``: in one), in the order they came.

    Raises:
        UserError: an override names a stage that the pipeline does not have.
    """
    rounds = [turn.name for turn in turns(settings) if turn.round]
    for stage, given in settings.stage_overrides.items():
        if stage in settings.stages or stage in rounds:
            continue
        first = next(iter(given.values()), "")
        stages = ", ".join(settings.stages) + (f"; of one round: {', '.join(rounds)}" if rounds else "")
        if stage in KINDS:
            raise UserError(f"{stage}.{first}: say for which stage, e.g. STAGE.{stage}.{first}; stages: {stages}")
        near = did_you_mean(stage, [*settings.stages, *rounds])
        raise UserError(f"{stage}.{first}: pipeline {settings.name} has no stage {stage}{near}; stages: {stages}")
    return {
        stage: [given[key] for key in sorted(given, key=lambda key: int(key[1:]))]
        for stage, given in settings.stage_overrides.items()
    }


def merge(base: Sequence[str], extra: Sequence[str]) -> list[str]:
    """``base`` followed by ``extra``, without what ``extra`` makes meaningless.

    Choosing another plugin for a group (``reward=sentiment``) drops the values ``base`` gave to the old one
    (``reward.path=…``): they would be unknown keys of the new one.
    """
    chosen = {key: value for key, value in map(_split, extra) if key in KINDS}
    return [*(text for text in base if _holds(text, base, chosen)), *extra]


def _holds(text: str, base: Sequence[str], chosen: Mapping[str, str]) -> bool:
    """Whether an override still means something after the choices that follow it."""
    kind, *rest = re.split(r"[.@]", _split(text)[0])
    if kind not in chosen or f"{kind}={chosen[kind]}" in base:
        return True
    return kind in SEVERAL and bool(rest) and rest[0] in re.findall(r"[\w-]+", chosen[kind])


def resolve_stage(text: str, results: Mapping[str, Sequence[Path]], number: int | None = None) -> str:
    """Put the results of earlier stages, escaped for Hydra's grammar, in the place of what stands for them.

    ``${stage:NAME}`` is the folder of an earlier stage (of a repeated one the latest), ``${stage:A|B}`` that of the
    first of them which there is by then, ``${stages:NAME}`` the list of all rounds' so far, ``${round}`` the round.

    Args:
        text: the override.
        results: for each stage of the pipeline, by its name and by that of each round, the folders so far.
        number: the round, None in a stage that is not repeated.

    Raises:
        UserError: no such stage, none that ran before, or no rounds.
    """

    def fill(found: re.Match[str]) -> str:
        kind, names = found[1], [name.strip() for name in (found[2] or "").split("|")]
        if kind == "round":
            if number is None:
                raise UserError(f"{text}: this stage is not in repeat, so it has no round")
            return str(number)
        for name in names:
            if name not in results:
                raise UserError(f"{text}: no earlier stage {name}{did_you_mean(name, results)}; {earlier(results)}")
        folders = next((results[name] for name in names if results[name]), [])
        if kind == "stages":
            return f"[{','.join(map(escaped, folders))}]"
        if not folders:
            raise UserError(f"{text}: no earlier stage {' or '.join(names)}; {earlier(results)}")
        return escaped(folders[-1])

    return re.sub(r"\$\{(stages?|round)(?::([^}]*))?\}", fill, text)


def earlier(results: Mapping[str, Sequence[Path]]) -> str:
    """The stages that have results, for error lines."""
    return f"earlier stages: {', '.join(name for name, folders in results.items() if folders) or 'none'}"


def escaped(folder: Path) -> str:
    """A folder as a value of Hydra's grammar."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(folder))


def quoted(text: str) -> str:
    """``text`` as a quoted value of Hydra's grammar that no interpolation touches."""
    return QuotedString(re.sub(r"\$\{", r"\\${", text), Quote.single).with_quotes()


def _parse(text: str) -> Override | None:
    """The parsed override; None where it cannot be read, which Hydra will say better later."""
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except OverrideParseException:
        return None


def _values(parsed: Override, stage: str, multirun: bool) -> list[str]:
    """The stage's own overrides: one, or one for each value of a sweep."""
    line = str(parsed.input_line)
    sign = _SIGN.match(line)[0]  # type: ignore[index]  # matches the empty string at worst
    key = sign + parsed.key_or_group.removeprefix(f"{stage}.") + (f"@{parsed.package}" if parsed.package else "")
    if not parsed.is_sweep_override():
        return [key + line[line.index("=") :] if "=" in line else key]
    if not multirun:
        name, _, several = line.partition("=")
        raise UserError(f"{line}: several values need -m to sweep over them; for a list write {name}=[{several}]")
    if parsed.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
        raise UserError(f"{line}: list the values; interval() and glob() do not work for one stage of a pipeline")
    return [f"{key}={value}" for value in parsed.sweep_string_iterator()]


def _unpack_one(text: str) -> str:
    parsed = _parse(text) if text.startswith(f"+{_STORE}.") else None
    if parsed is None:
        return text
    stage = parsed.key_or_group.split(".")[1]
    line = str(parsed.value()).replace(r"\${", "${")
    sign = _SIGN.match(line)[0]  # type: ignore[index]  # matches the empty string at worst
    return f"{sign}{stage}.{line[len(sign) :]}"


def _split(text: str) -> tuple[str, str]:
    key, _, value = text.lstrip("+~").partition("=")
    return key, value
