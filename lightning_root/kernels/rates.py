"""How fast this machine is at what the forms of the iteration are made of.

Measured once per machine, version of torch and number of threads, in about a second, and kept in
the cache folder, so that the same form is chosen from run to run and results stay the same bit for
bit. Where nothing can be kept nothing is measured: standing values decide then.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root.kernels.forms import decomposed
from lightning_root.kernels.kept import kept, machine_file
from lightning_root.kernels.products import quadratic

SIZES: Final = (64, 128, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Rates:
    """Times in units of the plain product of two m x m matrices, at each of `SIZES`.

    Args:
        eigh: Of an eigendecomposition.
        symmetric: Of b R + c R^2, whose product is symmetric.
        fused: Of a product that is added to a matrix.
    """

    eigh: tuple[float, ...]
    symmetric: tuple[float, ...]
    fused: tuple[float, ...]

    def at(self, m: int) -> tuple[float, float, float]:
        """All three for m rows, linear in log m between the sizes and constant beyond."""
        m = min(max(m, SIZES[0]), SIZES[-1])
        low = max(i for i, size in enumerate(SIZES[:-1]) if size <= m)
        weight = math.log(m / SIZES[low]) / math.log(SIZES[low + 1] / SIZES[low])
        eigh, symmetric, fused = (
            (1.0 - weight) * values[low] + weight * values[low + 1]
            for values in (self.eigh, self.symmetric, self.fused)
        )
        return eigh, symmetric, fused


STANDING: Final = Rates(
    eigh=(32.0, 24.5, 14.0, 10.4, 8.2, 6.1, 6.0),
    symmetric=(1.5, 1.2, 1.4, 1.0, 0.9, 0.78, 0.85),
    fused=(1.25, 1.08, 1.15, 1.1, 1.07, 1.05, 1.05),
)
"""Of one AVX-512 core with MKL."""

_known: dict[int, Rates] = {}
_one_at_a_time = Lock()


def rates(threads: int) -> Rates:
    """Those of this machine, measured by the calling thread if nobody has before.

    Args:
        threads: How many an operation of the calling thread uses.
    """
    with _one_at_a_time:  # others would disturb the measurement
        if threads not in _known:
            _known[threads] = kept(rates_file(threads), measure, _read) or STANDING
    return _known[threads]


def rates_file(threads: int) -> Path:
    """Where the rates of this machine are kept."""
    return machine_file(
        f"{processor()} {os.cpu_count()} cores torch {torch.__version__} {threads} threads"
    )


def rates_in_use() -> dict[int, Rates]:
    """What choices of this process rest on, by number of threads."""
    return dict(_known)


def adopt_rates(others: Mapping[int, Rates]) -> None:
    """Choose by these from now on, in place of this process's own."""
    _known.update(others)


def measure() -> Rates:
    """Time the operations at all sizes, with the threads that the caller has."""
    found: dict[str, list[float]] = {name: [] for name in _COMPARED}
    for m in SIZES:
        x = torch.randn(m, m, generator=torch.Generator().manual_seed(m))
        times = _seconds({"product": lambda x: x @ x, **_COMPARED}, x @ x.mT / x.square().sum())
        for name, values in found.items():
            values.append(times[name] / times["product"])
    return Rates(**{name: tuple(values) for name, values in found.items()})


_COMPARED: Final[Mapping[str, Callable[[Tensor], object]]] = {
    "eigh": decomposed,
    "symmetric": lambda x: quadratic(x, 1.0, 1.0),
    "fused": lambda x: torch.addmm(x, x, x, beta=2.0),
}


_MOST_RUNS: Final = 100_000
"""So that a clock that stands still does not hold anything up."""


def _seconds(
    runs: Mapping[str, Callable[[Tensor], object]], x: Tensor, least: float = 0.12
) -> dict[str, float]:
    """The shortest time of each in at least three rounds that take `least` seconds together.

    In turns, so that what slows the machine down for a while slows all of them, and so that none
    finds in the cache what it left there itself: within an iteration none does. With one thread,
    what other processes take of it does not count.
    """
    for run in runs.values():
        run(x)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = dict.fromkeys(runs, math.inf)
    began, rounds = clock(), 0
    while rounds < 3 or (clock() - began < least and rounds < _MOST_RUNS):
        for name, run in runs.items():
            start = clock()
            run(x)
            times[name] = min(times[name], clock() - start)
        rounds += 1
    return {name: max(seconds, 1e-9) for name, seconds in times.items()}  # clocks may be coarse


def _read(values: Mapping[str, Any]) -> Rates | None:
    """None if they are damaged."""
    found = Rates(**{name: tuple(map(float, values[name])) for name in _COMPARED})
    lists = asdict(found).values()
    sound = all(len(v) == len(SIZES) and all(1e-3 < x < 1e6 for x in v) for v in lists)
    return found if sound else None


def processor() -> str:
    """The name that the processor gives itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1]
    except OSError:  # another system than Linux
        pass
    return f"{platform.machine()} {platform.processor()}"
