"""Speed of this machine at what forms are made of; saved, so that all runs choose the same."""

import logging
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from lightning_root._files import atomic_write, cache_folder, read_json, write_json
from lightning_root.kernels.forms import decomposed, quadratic

_log = logging.getLogger(__name__)

Measured = TypeVar("Measured")
Parse = Callable[[Mapping[str, Any]], Measured | None]

SIZES: Final = (64, 128, 256, 384, 512, 768, 1024)

# Of small matrices so many are timed at once, as a step takes them: alone, what a call costs hides
# what they cost, and that is not the same for all operations.
STACKED_ELEMENTS: Final = 1 << 16

_MAX_ROUNDS: Final = 100_000  # so that a clock that stands still does not hold anything up


@dataclass(frozen=True)
class Rates:
    """Times per matrix in units of the plain product of two m x m matrices, at each of `SIZES`."""

    eigh: tuple[float, ...]  # an eigendecomposition
    symmetric: tuple[float, ...]  # b R + c R^2, whose product is symmetric
    fused: tuple[float, ...]  # a product that is added to a matrix

    def at(self, m: int) -> tuple[float, float, float]:
        """Return all three for m rows, linear in log m between the sizes and constant beyond."""
        m = min(max(m, SIZES[0]), SIZES[-1])
        low = max(i for i, size in enumerate(SIZES[:-1]) if size <= m)
        weight = math.log(m / SIZES[low]) / math.log(SIZES[low + 1] / SIZES[low])
        eigh, symmetric, fused = (
            (1.0 - weight) * values[low] + weight * values[low + 1]
            for values in (self.eigh, self.symmetric, self.fused)
        )
        return eigh, symmetric, fused


# Of one AVX-512 core with MKL.
DEFAULT_RATES: Final = Rates(
    eigh=(32.0, 24.5, 14.0, 10.4, 8.2, 6.1, 6.0),
    symmetric=(1.5, 1.2, 1.4, 1.0, 0.9, 0.78, 0.85),
    fused=(1.25, 1.08, 1.15, 1.1, 1.07, 1.05, 1.05),
)

known: dict[int, Rates] = {}  # what this process goes by, by number of threads
_lock = Lock()


def rates(threads: int) -> Rates:
    """Return the rates with so many threads, measured by the calling thread if need be."""
    with _lock:  # other threads would disturb the measurement
        if threads not in known:
            found = load_or_measure(rates_file(threads), measure, _parse)
            known[threads] = found or DEFAULT_RATES
    return known[threads]


def rates_file(threads: int) -> Path:
    """Return the file for the rates of this machine."""
    cores = f"{processor()} {os.cpu_count()} cores"
    return machine_file(f"{cores} torch {torch.__version__} {threads} threads")


def measure() -> Rates:
    """Time the operations at all sizes, with the threads that the caller has."""
    found: dict[str, list[float]] = {name: [] for name in _COMPARED}
    for m in SIZES:
        x = torch.randn(m, m, generator=torch.Generator().manual_seed(m))
        x = x @ x.mT / x.square().sum()
        count = STACKED_ELEMENTS // m**2
        x = x.repeat(count, 1, 1) if count > 1 else x
        times = _seconds({"product": lambda x: x @ x, **_COMPARED}, x)
        for name, values in found.items():
            values.append(times[name] / times["product"])
    return Rates(**{name: tuple(values) for name, values in found.items()})


_COMPARED: Final[Mapping[str, Callable[[Tensor], object]]] = {
    "eigh": decomposed,
    "symmetric": lambda x: quadratic(x, 1.0, 1.0),
    "fused": lambda x: (torch.addmm if x.ndim == 2 else torch.baddbmm)(x, x, x, beta=2.0),
}


def _seconds(
    runs: Mapping[str, Callable[[Tensor], object]], x: Tensor, min_seconds: float = 0.12
) -> dict[str, float]:
    """Return the shortest time of each in three rounds or more, `min_seconds` together."""
    # In turns, so that what slows the machine down for a while slows all of them, and so that none
    # finds in the cache what it left there itself. With one thread, other processes do not count.
    for run in runs.values():
        run(x)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times = dict.fromkeys(runs, math.inf)
    began, rounds = clock(), 0
    while rounds < 3 or (clock() - began < min_seconds and rounds < _MAX_ROUNDS):
        for name, run in runs.items():
            start = clock()
            run(x)
            times[name] = min(times[name], clock() - start)
        rounds += 1
    return {name: max(seconds, 1e-9) for name, seconds in times.items()}  # clocks may be coarse


def _parse(values: Mapping[str, Any]) -> Rates | None:
    """Read what was saved; None if it is damaged."""
    found = Rates(**{name: tuple(map(float, values[name])) for name in _COMPARED})
    lists = asdict(found).values()
    sound = all(len(v) == len(SIZES) and all(1e-3 < x < 1e6 for x in v) for v in lists)
    return found if sound else None


def processor() -> str:
    """Return the name that the processor gives itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1]
    except OSError:  # another system than Linux
        pass
    return f"{platform.machine()} {platform.processor()}"


def machine_file(description: str) -> Path:
    """Return the file in the cache folder for a measurement of what is described."""
    name = "-".join("".join(c if c.isalnum() else " " for c in description).split())
    try:
        return cache_folder() / "rates-3" / f"{name}.json"
    except RuntimeError:  # no home folder: a file that nobody can write
        return Path(os.devnull) / f"{name}.json"


def load_or_measure(
    file: Path,  # from `machine_file`
    measure: Callable[[], Any],  # gives a dataclass
    parse: Parse[Measured],  # None, or a KeyError, TypeError or ValueError, for damaged values
) -> Measured | None:
    """Load a measurement, or make and save it; None, and not measured, if it cannot be saved."""
    # Results would depend on what else the machine was doing. Of several processes that start
    # together, the one that writes first decides for all.
    if (found := _load(file, parse)) is not None:
        return found
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as draft:  # fails where nothing can be saved
            began = time.perf_counter()
            write_json(draft, asdict(measure()))
            seconds = time.perf_counter() - began
            _log.debug("measured this machine in %.1f s, once: %s", seconds, file)
            if _load(file, parse) is not None:
                draft.write_bytes(file.read_bytes())
    except OSError:
        return None
    return _load(file, parse)


def _load(file: Path, parse: Parse[Measured]) -> Measured | None:
    """Load a measurement; None if there is none, or it is damaged."""
    try:
        return parse(read_json(file))
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
