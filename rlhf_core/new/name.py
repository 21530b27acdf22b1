"""Which names a plugin can have: as a package, as a class, and behind ``KIND=``."""

import builtins
import keyword
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError
from ..fetch import installed
from ..plugins import available
from ..presets import options

OTHER_WORDS = {"null", "true", "false", "none", "yes", "no", "on", "off", "nan", "inf", "tests"}
"""What overrides and YAML read as something else than a name, and a folder that the package has beside its own."""


@dataclass(frozen=True)
class Name:
    """A plugin's name in the forms that its package needs.

    Attributes:
        kind: which kind of plugin it is.
        module: the plugin's name, which is that of its package, too: ``my_reward``.
    """

    kind: str
    module: str

    @staticmethod
    def of(kind: str, text: str) -> "Name":
        """From what was typed; hyphens are underscores.

        Raises:
            UserError: it is no name.
        """
        module = text.replace("-", "_")
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", module):
            like = _snake_case(text) or f"my_{kind}"
            raise UserError(f"{text}: is no name; take small letters, digits and single underscores, e.g. {like}")
        name = Name(kind, module)
        if keyword.iskeyword(module) or keyword.iskeyword(name.cls) or module in OTHER_WORDS:
            raise UserError(f"{text}: means something else to Python or to the command line; take e.g. my_{module}")
        if hasattr(builtins, name.cls):
            raise UserError(f"{text}: the class would be {name.cls}, which is Python's own; take e.g. my_{module}")
        return name

    @property
    def cls(self) -> str:
        """The class: ``MyReward``."""
        return "".join(word[0].upper() + word[1:] for word in self.module.split("_"))

    @property
    def distribution(self) -> str:
        """What pip calls it: ``my-reward``."""
        return self.module.replace("_", "-")

    def refuse_taken(self) -> None:
        """Refuse what would hide a module, a package, a plugin or a preset that is there.

        Raises:
            UserError: something has the name already.
        """
        another = f"take another name, e.g. my_{self.module}"
        if self.module in available(self.kind):
            owner = available(self.kind)[self.module].distribution
            raise UserError(f"{self.module}: {owner} has a {self.kind} of this name; {another}")
        if self.module in sys.stdlib_module_names:
            raise UserError(f"{self.module}: is a module of Python's own; {another}")
        if _importable(self.module) or installed(self.distribution):
            raise UserError(f"{self.module}: a package of this name is installed; {another}")
        if self.module in options("experiment"):
            raise UserError(f"{self.module}: experiment={self.module} is a preset already; {another}")


def _snake_case(text: str) -> str:
    """``MyReward`` and ``my reward`` as ``my_reward``; nothing where no letter is left."""
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", text)
    found = "_".join(words).lower()
    return found if found[:1].isalpha() else ""


def _importable(module: str) -> bool:
    """Whether there is such a module, a bare folder in the working directory apart."""
    spec = find_spec(module)
    if spec is None:
        return False
    return spec.origin is not None or any(
        Path(place).parent != Path.cwd() for place in spec.submodule_search_locations or ()
    )
