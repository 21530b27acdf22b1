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

from ...contracts.reward import Reward, Samples
from ...failure import flat
from ..check import NotApplicable, fail
from ..runner import seed
from ..world import World

TOLERANCE = 1e-4
"""of the largest score: models round otherwise in batches of another size"""


def ready(reward: Reward, world: World, run_seed: int = 0) -> Any:
    """Set a reward up, in a run that is returned."""
    return world.run(reward=reward, seed=run_seed)


def scores_of(reward: Reward, samples: Samples) -> Tensor:
    """``[B]`` float64 scores, the random numbers being the same each time."""
    seed(0)
    found: Any = reward.score(samples)
    try:
        flat_scores = torch.as_tensor(found).detach().cpu().double().reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise NotApplicable("it gives no numbers") from error
    if len(flat_scores) != len(samples):
        raise NotApplicable("it does not give one score a response")
    return flat_scores


def different(first: Tensor, second: Tensor) -> list[int]:
    """Where ``[B]`` scores are not the same but for rounding; NaN is NaN."""
    finite = torch.cat([first, second])
    scale = float(finite[finite.isfinite()].abs().max()) if bool(finite.isfinite().any()) else 0.0
    same = torch.isclose(first, second, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)
    return (~same).nonzero().flatten().tolist()


def refuse_different(first: Tensor, second: Tensor, samples: Samples, once: str, then: str) -> None:
    """Fail with the first response whose two scores differ."""
    if places := different(first, second):
        at = places[0]
        text = f"response {at} ({_cut(samples.responses[at])}) got {first[at]:.6g} {once} and {second[at]:.6g} {then}"
        fail(text + (f"; {len(places)} of {len(samples)} differ" if len(places) > 1 else ""))


def not_finite(scores: Tensor, samples: Samples) -> str:
    """The first score that is no number, in words; empty where all are."""
    places = (~scores.isfinite()).nonzero().flatten().tolist()
    return (
        f"{float(scores[places[0]])} for response {places[0]} ({_cut(samples.responses[places[0]])})" if places else ""
    )


def trouble_with(reward: Reward, samples: Samples) -> str:
    """Why a reward cannot score samples; empty where it gives each a finite number."""
    try:
        return not_finite(scores_of(reward, samples), samples)
    except NotApplicable as reason:
        return str(reason)
    except Exception as error:  # of a stranger
        return f"{type(error).__name__}: {flat(error)}"


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
    names = ("prompts", "responses", "prompt_ids", "response_ids", "stops")
    found: dict[str, Any] = {name: repr(getattr(samples, name)) for name in names}
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


class torch_changes:
    """What of torch's settings was changed since; they are as runs begin when it is entered, as before when left."""

    def __enter__(self) -> "torch_changes":
        """Remember."""
        self.outside = _settings()
        _set(self.outside | {GRADIENTS: True, DTYPE: torch.float32})
        self.before = _settings()
        return self

    def __exit__(self, *error: object) -> None:
        """Restore."""
        _set(self.outside)

    def __call__(self) -> str:
        """In words."""
        now = _settings()
        return "; ".join(f"{name} went from {self.before[name]} to {now[name]}" for name in now
                         if now[name] != self.before[name])  # fmt: skip


GRADIENTS, DTYPE = "whether gradients are recorded", "the default dtype"

_SETTINGS: dict[str, tuple[Any, Any]] = {
    GRADIENTS: (torch.is_grad_enabled, torch.set_grad_enabled),
    DTYPE: (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, lambda device: torch.set_default_device(_explicit(device))),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
}


def _settings() -> dict[str, Any]:
    return {name: read() for name, (read, _) in _SETTINGS.items()}


def _set(settings: dict[str, Any]) -> None:
    for name, (_, write) in _SETTINGS.items():
        write(settings[name])


def _explicit(device: torch.device) -> torch.device | None:
    return None if device.type == "cpu" else device  # the CPU by name would cost time at every call


def _cut(text: str, most: int = 30) -> str:
    return repr(text if len(text) <= most else text[:most] + "…")
