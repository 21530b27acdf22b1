"""What the checks of rewards share: scores that can be compared, whatever shape they come in.

B responses.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...contracts.reward import LISTS, Reward, Samples
from ...failure import told
from ..check import NotApplicable, fail
from ..process import restore, seed, settings_of_torch
from ..world import World

TOLERANCE = 1e-4
"""of the largest score: models round otherwise in batches of another size"""

COARSE = 2e-2
"""the same for what is computed in half precision"""


def ready(reward: Reward, world: World, run_seed: int = 0) -> Any:
    """Set a reward up, in a run that is returned."""
    return world.run(reward=reward, seed=run_seed)


def scores_of(reward: Reward, samples: Samples) -> Tensor:
    """``[B]`` float64 scores, the random numbers being the same each time."""
    seed(0)
    found = numbers(reward.score(samples))
    if len(found) != len(samples):
        raise NotApplicable("it does not give one score a response")
    return found


def numbers(found: Any) -> Tensor:
    """Float64, a copy, of whatever a reward gave."""
    try:
        return torch.as_tensor(found).detach().cpu().to(torch.float64, copy=True).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise NotApplicable("it gives no numbers that can be read") from error


def different(first: Tensor, second: Tensor, tolerance: float = TOLERANCE) -> list[int]:
    """Where ``[B]`` scores are not the same but for rounding; NaN is NaN."""
    finite = torch.cat([first, second])
    scale = float(finite[finite.isfinite()].abs().max()) if bool(finite.isfinite().any()) else 0.0
    same = torch.isclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    return (~same).nonzero().flatten().tolist()


def refuse_different(reward: Reward, first: Tensor, second: Tensor, samples: Samples, once: str, then: str) -> None:
    """Fail with the first response whose two scores differ, by more than what it computes in explains."""
    places = different(first, second)
    if places and computes_in_halves(reward, samples):
        places = different(first, second, COARSE)
    if places:
        at = places[0]
        text = f"response {at} ({_cut(samples.responses[at])}) got {first[at]:.6g} {once} and {second[at]:.6g} {then}"
        fail(text + (f"; {len(places)} of {len(samples)} differ" if len(places) > 1 else ""))


class Halves(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything is computed in half precision, under autocast too."""

    seen: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As it would be without."""
        found = func(*args, **(kwargs or {}))
        self.seen |= isinstance(found, Tensor) and found.dtype in (torch.bfloat16, torch.float16)
        return found


def computes_in_halves(reward: Reward, samples: Samples) -> bool:
    """Whether a reward's scores are rounded to three digits or fewer on the way."""
    with Halves() as halves:  # type: ignore[no-untyped-call]
        crash_of(reward, samples)
    return bool(halves.seen)


def not_finite(scores: Tensor, samples: Samples) -> str:
    """The first score that is no number, in words; empty where all are."""
    places = (~scores.isfinite()).nonzero().flatten().tolist()
    return (
        f"{float(scores[places[0]])} for response {places[0]} ({_cut(samples.responses[places[0]])})" if places else ""
    )


def trouble_with(reward: Reward, samples: Samples) -> str:
    """Why a reward cannot score samples; empty where it gives each a finite number."""
    if crash := crash_of(reward, samples):
        return crash
    try:
        return not_finite(scores_of(reward, samples), samples)
    except NotApplicable as reason:
        return str(reason)


def crash_of(reward: Reward, samples: Samples) -> str:
    """What scoring raises; empty where it raises nothing."""
    seed(0)
    try:
        reward.score(samples)
    except Exception as error:  # of a stranger
        return told(error)
    return ""


def named(samples: Samples) -> str:
    """The first response, in few words."""
    text = samples.responses[0]
    return "an empty response" if not text.strip() else f"the response {_cut(text)} of {len(text)} characters"


def rotated(samples: Samples) -> Samples:
    """The same prompts, each with the response of its neighbour: texts that were seen, in other pairs."""
    places = range(len(samples))
    turned = samples.select([(place + 1) % len(samples) for place in places])
    return Samples(
        samples.prompts, turned.responses, samples.prompt_ids, turned.response_ids, turned.stops, samples.tokenizer
    )


def without_tokens(samples: Samples) -> Samples:
    """The first prompt, with a response that was cut before its first token."""
    return replace(samples.select([0]), responses=[""], response_ids=[[]], stops=["length"])


def short(samples: Samples) -> Samples:
    """Those of at most 1000 characters."""
    return samples.select([number for number, text in enumerate(samples.responses) if len(text) <= 1000])


def contents(samples: Samples) -> dict[str, Any]:
    """What samples hold, by name, copied, and how their tokenizer is set."""
    found: dict[str, Any] = {name: repr(getattr(samples, name)) for name in LISTS}
    settings = ("padding_side", "truncation_side", "pad_token", "eos_token", "chat_template")
    return found | {f"tokenizer.{name}": getattr(samples.tokenizer, name, None) for name in settings}


@contextmanager
def other_hashes(plugin: Any) -> Iterator[None]:
    """``hash`` of text as another process has it, in the modules of the plugin's package."""
    package = type(plugin).__module__.partition(".")[0]
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == package]
    modules = [module for module in modules if module is not None and "hash" not in vars(module)]
    for module in modules:
        vars(module)["hash"] = _salted
    try:
        yield
    finally:
        for module in modules:
            vars(module).pop("hash", None)


def _salted(value: Any) -> int:
    return hash(("another process", value)) if isinstance(value, str | bytes | tuple | frozenset) else hash(value)


WATCHED = {
    "grad_enabled": "whether gradients are recorded",
    "default_dtype": "the default dtype",
    "default_device": "the default device",
    "num_threads": "the number of threads",
}
"""Settings of torch that scoring may not change, in words."""


class torch_changes:
    """What of torch's settings was changed since; they are as runs begin when it is entered, as before when left."""

    def __enter__(self) -> "torch_changes":
        """Remember."""
        self.outside = settings_of_torch()
        restore({"grad_enabled": True, "default_dtype": torch.float32})
        self.before = settings_of_torch()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore."""
        restore(self.outside)

    def __call__(self) -> str:
        """In words."""
        now = settings_of_torch()
        changed = [name for name in WATCHED if now[name] != self.before[name]]
        return "; ".join(f"{WATCHED[name]} went from {self.before[name]} to {now[name]}" for name in changed)


def _cut(text: str, most: int = 30) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")
