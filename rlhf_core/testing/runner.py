"""Runs checks: each on a copy of the plugin, in a world of its own; whatever it raises is a failure."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ..contracts import missing
from ..failure import line_in, told
from .check import Check, CheckFailed, NotApplicable, Outcome
from .checks import checks_of, kind_of
from .checks.plugin import CHECKS as COMMON
from .process import unharmed
from .world import World


def run_checks(
    plugin: Any, kind: str | None = None, device: str = "cpu", checks: Iterable[Check] | None = None
) -> Iterator[Outcome]:
    """Checks of a plugin, one after the other.

    Args:
        plugin: an instance, not set up.
        kind: which kind of plugin it is; None: as it is registered, else by its methods.
        device: where models are.
        checks: which; None: all of the kind.

    Raises:
        UserError: nothing tells its kind.
    """
    kind, raised = kind or kind_of(plugin), dict[str, str]()
    for check in checks_of(kind) if checks is None else checks:
        yield attempt(check, plugin, kind, device, raised)


def attempt(check: Check, plugin: Any, kind: str, device: str = "cpu", raised: dict[str, str] | None = None) -> Outcome:
    """What comes of one check of a plugin of this kind; whatever it raises is a failure of the check.

    Args:
        check: what to ask.
        plugin: an instance, not set up; the check gets a copy.
        kind: what it is checked as.
        device: where models are.
        raised: errors that earlier checks met, each with the check's name: the same error is not told twice.
    """
    if reason := _not_asked(check, plugin, kind):
        return Outcome(check, "skipped", reason=reason)
    try:
        with unharmed() as folder:
            if kind == "tracker":  # they write where they stand; others may read files of the folder they are asked in
                os.chdir(folder)
            check.body(deepcopy(plugin), World(folder, device, kind))
    except NotApplicable as why:
        return Outcome(check, "skipped", reason=str(why))
    except CheckFailed as found:
        return Outcome(check, "failed", found.expected or check.expected, found.came, found.cure or check.cure)
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything at all
        came = f"{told(error)}{_place(error, plugin)}"
        first = check.name if raised is None else raised.setdefault(came, check.name)
        return Outcome(check, "failed", check.expected, came, check.cure, same_as=first if first != check.name else "")
    return Outcome(check, "passed")


def _not_asked(check: Check, plugin: Any, kind: str) -> str:
    """Why a check is skipped before it is tried; empty where it is not."""
    by_design: Mapping[str, str] = getattr(plugin, "rlhf_checks", {})
    if check.name in by_design:
        return f"by design, {by_design[check.name]}"
    lacking = missing(kind, plugin)
    if lacking and check not in COMMON:
        return f"it has no {' and no '.join(lacking)}, see has_its_contract"
    return ""


def _place(error: BaseException, plugin: Any) -> str:
    """``" (my_reward.py, line 12)"``: the last line of the plugin's own file that the error passed through."""
    file = getattr(sys.modules.get(type(plugin).__module__), "__file__", None)
    line = line_in(file, error)
    return f" ({Path(file).name}, line {line})" if file and line else ""
