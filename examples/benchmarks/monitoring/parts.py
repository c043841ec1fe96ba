"""What the time within a monitor is spent on."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from lightning_root import ROOTMonitor
from lightning_root.diagnostics import board, observation

HOOKS = {
    "on_train_start": "start",
    "on_before_optimizer_step": "norms of the weights",
    "on_train_batch_end": "scalars, alerts",
    "on_validation_end": "heat maps after validations",
    "on_train_end": "heat maps at the end",
}
"""Hooks of the monitor, and what each of them does apart from `CALLS`."""

CALLS = {
    (observation, "measure"): "measuring",
    (observation, "samples"): "histograms",
    (board, "write_histograms"): "histograms",
}
"""What the monitor calls within the step or within its hooks."""


class Clock:
    """CPU seconds of the process by part; a part within another one counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose calls count as `part`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._switch()
                self._open.pop()

        return call

    def _switch(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def timed(monitor: ROOTMonitor) -> Iterator[Clock]:
    """Have a clock run wherever the monitor is at work.

    Args:
        monitor: Whose hooks are timed for good; what they call is timed within the context.
    """
    clock = Clock()
    with ExitStack() as stack:
        for hook, part in HOOKS.items():
            setattr(monitor, hook, clock.timed(part, getattr(monitor, hook)))
        for (module, name), part in CALLS.items():
            stack.enter_context(
                patch.object(module, name, clock.timed(part, getattr(module, name)))
            )
        yield clock
