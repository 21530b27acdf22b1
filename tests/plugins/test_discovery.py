"""Discovery reads metadata; the first-party plugins are found as strangers are."""

import subprocess
import sys
import tomllib
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from rlhf_core import RLHF_API, plugins
from rlhf_core.errors import UserError
from rlhf_core.plugins import KINDS, available, did_you_mean, load, module_file, package_folder, provenance

FIRST_PARTY = [
    (info.kind, info.name) for kind in KINDS for info in available(kind).values() if "rlhf_plugins" in info.value
]


def test_what_is_declared_is_found():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    for kind in KINDS:
        names = {name for k, name in FIRST_PARTY if k == kind}
        assert names == set(declared.get(f"rlhf.{kind}", {})), "an entry point is new: install again (pip install -e .)"


@pytest.mark.parametrize(("kind", "name"), FIRST_PARTY)
def test_first_party_plugin_keeps_the_contract(kind, name):
    cls = load(kind, name)
    assert is_dataclass(cls)
    assert cls.rlhf_api == RLHF_API
    assert cls.__doc__
    assert plugins.loaded(cls) == available(kind)[name]


def test_provenance_of_choices():
    rows = provenance({"reward": "sum", "reward@reward.parts.a": "sentiment", "experiment": "x", "tracker": None})
    assert [(row["kind"], row["name"]) for row in rows] == [("reward", "sentiment"), ("reward", "sum")]
    assert {row["distribution"] for row in rows} == {"rlhf-core"}
    assert [Path(row["file"]).name for row in rows] == ["sentiment.py", "sum.py"]


def test_files_are_found_without_importing():
    code = (
        "import sys\nfrom rlhf_core.plugins import module_file, package_folder\n"
        "print(module_file('torch.nn.functional'), package_folder('torch.nn'), module_file('torch.nope'))\n"
        "assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    file, folder, missing = run.stdout.split()
    assert file.endswith("functional.py")
    assert Path(folder).name == "nn"
    assert missing == "None"
    assert module_file("no_such_package.x") is None
    assert package_folder("no_such_package") is None


def test_unknown_plugin():
    with pytest.raises(UserError, match=r"reward=sentimnt: no such reward; available: .*Did you mean sentiment\?"):
        load("reward", "sentimnt")


def test_did_you_mean():
    assert did_you_mean("scal", ["scale", "marks"]) == ". Did you mean scale?"
    assert did_you_mean("zzz", ["scale", "marks"]) == ""
