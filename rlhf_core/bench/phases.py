"""Where the time of running code goes, told from outside: functions are wrapped while one looks, and put back.

A phase counts exclusively: while a wrapped function runs inside another, only the inner one's clock runs.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Phases:
    """Seconds and calls by phase.

    Attributes:
        seconds: phase → seconds, exclusive.
        calls: phase → how often it was entered.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing counted yet; a GPU is waited for at each boundary."""
        self.device = device
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._open: list[str] = []
        self._since = 0.0

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds, self.calls = {}, {}

    @contextmanager
    def watching(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """Wrap functions meanwhile.

        Args:
            places: what holds a function (an object, a class or a module), the function's name, the phase it is.
        """
        undo = [self._wrap(holder, name, phase) for holder, name, phase in places if hasattr(holder, name)]
        try:
            yield
        finally:
            for restore in reversed(undo):
                restore()

    def _wrap(self, holder: Any, name: str, phase: str) -> Callable[[], None]:
        own = name in vars(holder)
        function = getattr(holder, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        setattr(holder, name, timed)
        return lambda: setattr(holder, name, function) if own else delattr(holder, name)

    def _enter(self, phase: str) -> None:
        self._settle()
        self._open.append(phase)
        self.calls[phase] = self.calls.get(phase, 0) + 1

    def _leave(self) -> None:
        self._settle()
        self._open.pop()

    def _settle(self) -> None:
        """Give the time since the last boundary to the phase that is open."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now
