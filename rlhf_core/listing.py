"""``rlhf list`` and ``rlhf info``: which plugins are installed, and what each one is. Nothing is imported."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import metadata
from typing import Any

from rlhf_core.describe import Description, FieldDoc, describe
from rlhf_core.errors import UserError
from rlhf_core.plugins import EXTENSIONS, SEVERAL, PluginInfo, available, did_you_mean
from rlhf_core.presets import using


def list_plugins(argv: list[str]) -> int:
    """``rlhf list [kind] [--json]``."""
    words, as_json = _arguments("list", argv)
    for kind in words:
        if kind not in EXTENSIONS:
            raise UserError(f"{kind}: no such kind; there are: {', '.join(EXTENSIONS)}{did_you_mean(kind, EXTENSIONS)}")
    shown = {kind: [(info, describe(info)) for info in available(kind).values()] for kind in words or EXTENSIONS}
    if as_json:
        print(json.dumps([_row(info, about) for rows in shown.values() for info, about in rows], indent=1))
        return 0
    width = max((len(info.name) for rows in shown.values() for info, _ in rows), default=0)
    for kind, rows in shown.items():
        several = f" (several: {kind}=[a,b])" if kind in SEVERAL else ""
        print(f"{kind}{several}")
        for info, about in rows:
            text = f"BROKEN: {about.problem}" if about.problem else about.summary
            print(f"  {info.name:{width}}  {text}  [{info.distribution} {info.version}]")
    print("\nmore: rlhf info KIND=NAME; choose: rlhf train KIND=NAME")
    return 0


def show_plugin(argv: list[str]) -> int:
    """``rlhf info kind=name [--json]``."""
    words, as_json = _arguments("info", argv)
    if len(words) != 1:
        raise UserError(f"info takes one plugin as kind=name, got {' '.join(words) or 'none'}; rlhf list shows them")
    info = _find(words[0])
    about = describe(info)
    presets = [override for override, _ in using(info.kind, info.name)]
    if as_json:
        fields = [asdict(field) for field in about.fields]
        examples = list(_examples(info, about.fields))
        extra = {
            "doc": about.doc, "licence": licence(info), "fields": fields, "presets": presets, "examples": examples,
        }  # fmt: skip
        print(json.dumps(_row(info, about) | extra, indent=1))
        return 0
    print("\n".join(_page(info, about, presets)))
    return 0


def licence(info: PluginInfo) -> str:
    """The licence its distribution states, empty where it states none."""
    stated = metadata(info.distribution)
    classifiers = [text for text in stated.get_all("Classifier") or () if text.startswith("License ::")]
    named = next((stated[key].partition("\n")[0] for key in ("License-Expression", "License") if key in stated), "")
    return named or ", ".join(text.rpartition(":: ")[2] for text in classifiers)


def _arguments(command: str, argv: list[str]) -> tuple[list[str], bool]:
    words = [word for word in argv if word != "--json"]
    for word in words:
        if word.startswith("-"):
            raise UserError(f"{word}: no such option of rlhf {command}; there is --json")
    return words, "--json" in argv


def _find(word: str) -> PluginInfo:
    kind, equals, name = word.partition("=")
    if not equals:  # a name alone is enough where only one kind has it
        owners = [kind for kind in EXTENSIONS if word in available(kind)]
        if len(owners) != 1:
            choices = ", ".join(f"{owner}={word}" for owner in owners) or "rlhf list shows what there is"
            raise UserError(f"{word}: say it as kind=name ({choices})")
        kind, name = owners[0], word
    if kind not in EXTENSIONS:
        raise UserError(f"{word}: no such kind; there are: {', '.join(EXTENSIONS)}{did_you_mean(kind, EXTENSIONS)}")
    names = available(kind)
    if name not in names:
        raise UserError(f"{word}: no such {kind}; available: {', '.join(names)}{did_you_mean(name, names)}")
    return names[name]


def _row(info: PluginInfo, about: Description) -> dict[str, Any]:
    return {
        "kind": info.kind,
        "name": info.name,
        "summary": about.summary,
        "distribution": info.distribution,
        "version": info.version,
        "class": info.value,
        "file": str(about.file or ""),
        "problem": about.problem,
    }


def _page(info: PluginInfo, about: Description, presets: list[str]) -> Iterator[str]:
    yield f"{info.kind}={info.name}  ({info.distribution} {info.version}, licence: {licence(info) or 'not stated'})"
    yield f"{about.file or info.module}:{about.line}" if about.line else f"{about.file or info.module}"
    if about.problem:
        yield f"BROKEN: {about.problem}"
    if about.doc:
        yield f"\n{about.doc}"
    if about.fields:
        yield "\nfields"
        yield from _table(about.fields)
    if presets:
        yield "\npresets"
        yield from (f"  {preset}" for preset in presets)
    yield "\nexamples"
    yield from (f"  {line}" for line in _examples(info, about.fields))


def _table(fields: tuple[FieldDoc, ...]) -> Iterator[str]:
    left = [f"{f.name}: {f.type} = {f.default}" if f.default is not None else f"{f.name}: {f.type}" for f in fields]
    width = min(max(map(len, left)), 48)
    for text, field in zip(left, fields, strict=True):
        doc = field.doc if field.default is not None else f"(required) {field.doc}"
        yield f"  {text:{width}}  {doc}".rstrip()


USES = {
    "policy": "rlhf train algorithm=lm {choice}",
    "reward": "rlhf train algorithm=ppo {choice} policy.path=RUN/sft/result",
    "algorithm": "rlhf train {choice}",
    "data": "rlhf train algorithm=sft {choice}",
    "rollout": "rlhf train algorithm=ppo reward=sentiment {choice} policy.path=RUN/sft/result",
    "evaluator": "rlhf train algorithm=evaluate {choice} policy.path=RUN/sft/result",
    "tracker": "rlhf train {choice}",
    "benchmark": "rlhf bench run impl={name}",
}
"""A command that puts a plugin of each kind to use."""


def _examples(info: PluginInfo, fields: tuple[FieldDoc, ...]) -> Iterator[str]:
    several = info.kind in SEVERAL
    choice = f"'{info.kind}=[{info.name}]'" if several else f"{info.kind}={info.name}"
    prefix = f"{info.kind}.{info.name}" if several else info.kind
    required = "".join(f" {prefix}.{field.name}=…" for field in fields if field.default is None)
    use = USES[info.kind].format(choice=choice + required, name=info.name)
    yield use
    if info.kind != "benchmark":
        for field in [field for field in fields if field.type in ("int", "float", "bool") and field.default][:2]:
            yield f"{use} {prefix}.{field.name}={field.default}"
    if info.kind == "reward" and "parts" not in {field.name for field in fields}:
        yield f"rlhf train algorithm=ppo reward=sum +reward@reward.parts.{info.name}={info.name}"
    yield f"rlhf check {choice}{required}"
