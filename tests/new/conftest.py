"""One package of each kind, as ``rlhf new`` writes it, and all of them installed with pip into one folder."""

import shutil
from pathlib import Path

import pytest

from rlhf_core.contracts import CONTRACTS
from rlhf_core.new import main

from ..installing import pip


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind → folder of ``rlhf new KIND my_KIND``."""
    root = tmp_path_factory.mktemp("packages")
    for kind in CONTRACTS:
        assert main([kind, f"my_{kind}", "--folder", str(root / f"my_{kind}")]) == 0
    return {kind: root / f"my_{kind}" for kind in CONTRACTS}


@pytest.fixture(scope="session")
def site(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are installed, from copies: a build writes into its source folder."""
    target, sources = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("sources")
    pip("--target", target, *(shutil.copytree(folder, sources / folder.name) for folder in packages.values()))
    return target
