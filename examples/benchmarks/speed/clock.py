"""Several ways of doing one thing, timed in turns.

`torch.utils.benchmark.Timer` times one statement after the other, so that whatever the machine does
in between (another program, a lower clock) looks like a difference. Here every round runs all of
them in a random order, and what is compared are times of the same round.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from tqdm import tqdm  # type: ignore[import-untyped]

ClockName: TypeAlias = Literal["cpu", "wall"]


class Quartiles(NamedTuple):
    """Median and interquartile range."""

    low: float
    median: float
    high: float


@dataclass
class Times:
    """Seconds of one thing, a value per round.

    Args:
        cpu: CPU time of the whole process, all threads.
        wall: Time that passed.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and interquartile range."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
    return Quartiles(float(low), float(median), float(high))


def speed(times: Times, baseline: Times, clock: ClockName) -> Quartiles:
    """How many times as fast as the baseline: quartiles of the ratios within a round."""
    pairs = zip(getattr(baseline, clock), getattr(times, clock), strict=True)
    return quartiles([reference / seconds for reference, seconds in pairs])


def clock_of(device: torch.device, threads: int) -> ClockName:
    """CPU time says what one thread does, even beside other programs; otherwise the wall's."""
    return "cpu" if device.type == "cpu" and threads == 1 else "wall"


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """CPU seconds of the process and seconds passed; an accelerator's work is waited for."""
    _synchronize(device)
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    _synchronize(device)
    return time.process_time() - cpu, time.perf_counter() - wall


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: torch.device,
    prepare: Callable[[str, int], object] | None = None,
    seed: int = 0,
    label: str = "rounds",
) -> dict[str, Times]:
    """Time each of `runs` once a round, in an order that is drawn anew every round.

    Args:
        runs: What is timed, by name; warmed up already.
        rounds: How often.
        device: Where the work is done.
        prepare: Called with the name and the number of the round before each, untimed.
        seed: Of the order.
        label: In front of the progress bar.
    """
    order, draw = list(runs), random.Random(seed)
    times = {name: Times() for name in runs}
    total = rounds * len(order)
    with _no_collection(), tqdm(total=total, desc=label, unit="run", leave=False) as progress:
        for number in range(rounds):
            draw.shuffle(order)
            for name in order:
                if prepare is not None:
                    prepare(name, number)
                cpu, wall = timed(runs[name], device)
                times[name].cpu.append(cpu)
                times[name].wall.append(wall)
                progress.update()
    return times


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out, as `timeit` does."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
