"""Batches that depend on a seed and on their number alone, so that a run resumes exactly."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightning as L
import torch


def generator_of(*key: object) -> torch.Generator:
    """Return random numbers of their own for a key such as (seed, step): the same everywhere.

    Keys are told apart by a hash, so that neighbouring seeds and steps have nothing in common.
    """
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rank_and_world_size(trainer: L.Trainer | None) -> tuple[int, int]:
    """Return which share of the data is ours; (0, 1) in a single process.

    Lightning shards only `DataLoader` objects by itself. Ranks that hold parts of one and the
    same model (tensor parallelism) get the same share, which is why the strategy is asked.
    """
    kwargs = trainer.distributed_sampler_kwargs if trainer else None
    return (kwargs["rank"], kwargs["num_replicas"]) if kwargs else (0, 1)


class IndexedBatches(ABC):
    """Endless batches, cut into passes; a subclass says what batch `i` is.

    Lightning stores `state_dict()` in its checkpoints, so a resumed run continues with the very
    batch that it would have seen. All ranks draw the same global batch and each takes its own
    part: two ranks with 8 rows see what one rank with 16 sees. The state is the same on every
    rank and holds for another number of ranks, too.
    """

    next_batch = 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches in a pass."""

    @abstractmethod
    def batch(self, index: int) -> Any:
        """Return this rank's part of global batch `index`."""

    def __iter__(self) -> Iterator[Any]:
        """Yield one pass, from the next batch on; the trainer counts where an epoch ends.

        A thread makes each batch while the one before is trained on.
        """
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(self.batch, self.next_batch)
            for _ in range(len(self)):
                batch = ahead.result()
                self.next_batch += 1
                ahead = thread.submit(self.batch, self.next_batch)
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return what a checkpoint must hold: the index of the next batch."""
        return {"next_batch": self.next_batch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue where `state_dict` was taken."""
        self.next_batch = state_dict["next_batch"]
