"""Compile csrc/ against the torch that is installed here; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))  # an isolated build does not put the source tree on the path

from compile_extension import compile_extension  # noqa: E402  (csrc/compile_extension.py)

PACKAGES = [
    *find_packages(str(ROOT), include=["rlhf_core", "rlhf_core.*"]),
    "rlhf_core.conf",
    "rlhf_plugins",
    *(f"rlhf_plugins.{name}" for name in find_packages(str(ROOT / "plugins"))),
]


def csrc(pattern: str) -> list[str]:
    """Files of csrc/, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


class BuildExtension(build_ext):
    """Compiles with ninja where it can; else records why not, and the install goes on without."""

    def run(self) -> None:
        """Write ``rlhf_core/_C*.so`` where there is a compiler, and ``rlhf_core/_build.json`` always."""
        (extension,) = self.extensions
        package = ROOT / "rlhf_core" if self.inplace else Path(self.build_lib, "rlhf_core")
        library = package / Path(self.get_ext_filename(extension.name)).name
        # An editable install keeps its objects: ninja then compiles what changed.
        scratch = ROOT / "build" / "editable" if self.inplace else Path(self.build_temp)
        if not compile_extension(ROOT / "csrc", library, scratch, package / "_build.json"):
            self.extensions = []  # setuptools looks for the outputs of those that are listed


setup(
    packages=PACKAGES,
    ext_modules=[
        Extension(
            "rlhf_core._C",
            sources=csrc("*.cpp"),
            depends=[*csrc("*.h"), *csrc("*.cu"), *csrc("*.py")],  # so that an sdist has them
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
