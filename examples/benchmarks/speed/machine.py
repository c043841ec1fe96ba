"""What the machine can do at most: matrix products and copies."""

import time
import timeit
from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as synchronized

from examples.benchmarks.speed.clock import clock_of

COPIED = 1 << 28  # bytes: far more than any cache holds


@dataclass(frozen=True)
class Limits:
    """Best rates that were seen.

    Args:
        products: Operations per second of square matrix products, by dtype, then by size; a
            multiply-add is two operations.
        bandwidth: Bytes per second, read and written together, of a large copy.
    """

    products: dict[str, dict[int, float]]
    bandwidth: float

    def rate(self, dtype: str | None = None) -> float:
        """The best rate of products in a dtype, or in any."""
        chosen = self.products.values() if dtype is None else [self.products[dtype]]
        return max(rate for sizes in chosen for rate in sizes.values())


def measure_limits(device: torch.device, *, quick: bool = False) -> Limits:
    """Measure both, by the clock that everything else is measured by.

    Args:
        device: Where.
        quick: Small matrices and a tenth of the time: for tests, the rates are too low then.
    """
    sizes = (1024, 2048) if device.type == "cpu" else (4096, 8192)
    seconds, copied = 3.0, COPIED
    if quick:
        sizes, seconds, copied = (256, 512), 0.05, COPIED >> 4
    products: dict[str, dict[int, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        products[name] = {n: _product_rate(n, dtype, device, seconds) for n in sizes}
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    best = _best("target.copy_(source)", {"source": source, "target": target}, device, seconds)
    return Limits(products=products, bandwidth=2 * copied / best)


def _product_rate(n: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    names = {"torch": torch, "a": a, "b": b, "out": out}
    return 2 * n**3 / _best("torch.mm(a, b, out=out)", names, device, seconds)


def _best(statement: str, names: dict[str, object], device: torch.device, seconds: float) -> float:
    """The shortest time of a statement: whatever disturbs makes it longer."""
    threads = torch.get_num_threads()
    if clock_of(device, threads) == "cpu":
        clock = time.process_time
    else:
        clock = synchronized if device.type == "cuda" else timeit.default_timer
    timer = Timer(statement, globals=names, num_threads=threads, timer=clock)
    return min(timer.blocked_autorange(min_run_time=seconds).times)
