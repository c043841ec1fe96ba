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
from typing import Final

import torch

from lightning_root.coefficients.files import read_json, write_json
from lightning_root.coefficients.store import cache_folder
from lightning_root.kernels.products import symmetric_product

SIZES: Final = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Rates:
    """Times in units of the plain product of two m x m matrices, at each of `SIZES`.

    Args:
        eigh: Of an eigendecomposition.
        symmetric: Of a symmetric product.
    """

    eigh: tuple[float, ...]
    symmetric: tuple[float, ...]

    def at(self, m: int) -> tuple[float, float]:
        """Both for matrices of m rows, linear in log m between the sizes and constant beyond."""
        place = math.log(max(m, 1) / SIZES[0]) / math.log(SIZES[1] / SIZES[0])
        place = min(max(place, 0.0), len(SIZES) - 1.0)
        low = min(int(place), len(SIZES) - 2)
        weight = place - low
        eigh, symmetric = (
            (1.0 - weight) * values[low] + weight * values[low + 1]
            for values in (self.eigh, self.symmetric)
        )
        return eigh, symmetric


STANDING: Final = Rates(eigh=(22.0, 27.0, 15.0, 9.0, 7.0), symmetric=(1.0, 1.0, 0.98, 0.8, 0.78))
"""Of one AVX-512 core with MKL."""

_known: dict[int, Rates] = {}


def rates(threads: int) -> Rates:
    """Those of this machine, measured by the calling thread if nobody has before.

    Args:
        threads: How many an operation of the calling thread uses.
    """
    if threads not in _known:
        file = cache_folder() / "rates-1" / f"{_machine(threads)}.json"
        _known[threads] = _read(file) or _kept(file, measure) or STANDING
    return _known[threads]


def rates_in_use() -> dict[int, Rates]:
    """What choices of this process rest on, by number of threads."""
    return dict(_known)


def adopt_rates(others: Mapping[int, Rates]) -> None:
    """Choose by these from now on, in place of this process's own."""
    _known.update(others)


def measure() -> Rates:
    """Time both operations at all sizes, with the threads that the caller has."""
    eigh, symmetric = [], []
    for m in SIZES:
        x = torch.randn(m, m, generator=torch.Generator().manual_seed(m))
        gram = x @ x.mT / x.square().sum()
        product = _seconds(lambda x: x @ x, gram)
        eigh.append(_seconds(torch.linalg.eigh, gram) / product)
        symmetric.append(_seconds(lambda x: symmetric_product(x, x), gram) / product)
    return Rates(tuple(eigh), tuple(symmetric))


def _seconds(run: Callable[[torch.Tensor], object], x: torch.Tensor, least: float = 0.06) -> float:
    """The shortest of at least three runs that take `least` seconds together.

    With one thread, what other processes take of it does not count.
    """
    run(x)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        start = clock()
        run(x)
        times.append(clock() - start)
    return min(times)


def _read(file: Path) -> Rates | None:
    """None if it is missing or damaged."""
    try:
        values = read_json(file)
        found = Rates(*(tuple(map(float, values[name])) for name in ("eigh", "symmetric")))
    except (KeyError, TypeError, ValueError):
        return None
    numbers = (*found.eigh, *found.symmetric)
    sound = len(numbers) == 2 * len(SIZES) and all(1e-3 < number < 1e6 for number in numbers)
    return found if sound else None


def _kept(file: Path, measure: Callable[[], Rates]) -> Rates | None:
    """Measured and kept; None if it cannot be kept. Who writes first decides for all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.touch()
        write_json(draft, asdict(measure()))
        os.replace(draft, file) if _read(file) is None else draft.unlink()
    except OSError:
        return None
    return _read(file)


def _machine(threads: int) -> str:
    """What the rates depend on, as the name of a file."""
    words = f"{_processor()} {os.cpu_count()} cores torch {torch.__version__} {threads} threads"
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1]
    except OSError:  # another system than Linux
        pass
    return f"{platform.machine()} {platform.processor()}"
