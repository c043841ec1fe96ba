"""Training with and without the monitor in turns, and what the times of such blocks tell."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from tqdm import tqdm  # type: ignore[import-untyped]

from lightning_root import ROOTMonitor

WARM_UP = 2
"""Blocks before the first that counts: first steps allocate, and the first point draws."""

RESAMPLES = 10_000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Block:
    """Some steps: whether the monitor saw them, CPU seconds of the process, seconds passed."""

    monitored: bool
    cpu: float
    wall: float


class Turns(Callback):
    """Takes the monitor out of the Trainer and puts it back, block by block, and reads the clocks.

    Off, on, on, off, and so on. Must be the last of the callbacks.

    Args:
        monitor: One of the Trainer's callbacks.
        steps: Of a block.
        pairs: Blocks with the monitor; as many are without it.
    """

    def __init__(self, monitor: ROOTMonitor, steps: int, pairs: int) -> None:
        self.monitor, self.steps = monitor, steps
        self.blocks: list[Block] = []
        self._on = True
        self._cpu = self._wall = 0.0
        self._progress = tqdm(total=2 * pairs, desc="in turns", unit="block")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """At the end of a block, note its time and begin the next."""
        del pl_module
        if trainer.global_step % self.steps:
            return
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        number = trainer.global_step // self.steps - WARM_UP  # of the block that begins
        if number > 0:
            self.blocks.append(Block(self._on, cpu, wall))
            self._progress.update()
        self._on = number < 0 or number % 4 in (1, 2)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        others = [callback for callback in callbacks if callback is not self.monitor]
        # A new list, because the Trainer is walking through this one.
        trainer.callbacks = [self.monitor, *others] if self._on else others  # type: ignore[attr-defined]
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the line of the progress bar."""
        del trainer, pl_module
        self._progress.close()


def compare(blocks: Sequence[Block], clock: str) -> dict[str, Any]:
    """What the blocks of `Turns` tell: cost of the monitor, and the noise of such a measurement.

    Args:
        blocks: An even number of them; neighbours are a pair.
        clock: "cpu" or "wall".

    Returns:
        By `with_and_without` (ratios of a block with the monitor to the one beside it without) and
        `without_and_without` (of neighbours that are both without it, the later one to the earlier
        and the earlier to the later in turn): the `summary` of the ratios. Then `share`, by which
        all blocks with the monitor took longer, with its `share_interval`, and the seconds of a
        `block` without it.
    """
    seconds = np.array([getattr(block, clock) for block in blocks])
    monitored = np.array([block.monitored for block in blocks])
    on, off = seconds[monitored], seconds[~monitored]
    # Off, on, on, off, off, on: the second and the third block without the monitor are neighbours.
    neighbours = off[1 : 1 + 2 * ((len(off) - 1) // 2)].reshape(-1, 2)
    ratios = neighbours[:, 1] / neighbours[:, 0]
    ratios[1::2] = 1 / ratios[1::2]

    def share(index: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(on[index].sum(axis=-1) / off[index].sum(axis=-1) - 1)

    return {
        "with_and_without": summary(on / off),
        "without_and_without": summary(ratios),
        "share": float(share(np.arange(len(on)))),
        "share_interval": _interval(share, len(on)),
        "block": float(np.median(off)),
    }


def summary(ratios: NDArray[np.float64]) -> dict[str, Any]:
    """Number, median, quartiles, and the 95 % interval of the median by bootstrap."""
    return {
        "pairs": len(ratios),
        "median": float(np.median(ratios)),
        "quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
        "median_interval": _interval(lambda index: np.median(ratios[index], axis=-1), len(ratios)),
    }


def _interval(statistic: Any, count: int) -> list[float]:
    """95 % of what a statistic of an index array is when pairs are drawn with replacement."""
    drawn = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    found: list[float] = np.quantile(statistic(drawn), (0.025, 0.975)).tolist()
    return found
