"""Batches of packed windows, made ahead of training, resumed where training was."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from examples.batches import generator_of
from examples.language.packing import Packer

Block = tuple[Tensor, dict[str, Any]]  # windows, and the packer's state after them


class PackedBatches:
    """Endless batches, cut into passes, from blocks of windows in random order.

    While the windows of one block are trained on, a thread reads, tokenizes and packs the next
    (tokenizers compute outside Python's lock). What a checkpoint holds is where the block began and
    how many of its batches training has had, however far the thread has got; a resumed run reads
    that block again, and goes on with the very batch that would have come.

    Each rank has a position of its own. They are collected in the checkpoint, so `state_dict` must
    be called on all ranks, as Lightning does; a run resumes on as many ranks as it was saved on.

    Args:
        packer: This rank's windows; its blocks hold a whole number of batches.
        batch_size: Windows per batch and rank.
        batches: Batches in a pass.
        seed: Order of the windows in each block; None keeps theirs.
        rank: Which share of the data is ours.
        world_size: Number of shares.
    """

    def __init__(
        self,
        packer: Packer,
        batch_size: int,
        batches: int,
        seed: int | None,
        rank: int,
        world_size: int,
    ) -> None:
        assert packer.windows % batch_size == 0
        self.packer, self.batch_size, self.batches = packer, batch_size, batches
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.block_number, self.next_batch = 0, 0  # the next batch's block, and its place there
        self.waited_seconds, self.first_batch_at = 0.0, 0.0
        self._start = packer.state_dict()  # where the next batch's block begins
        self._block: Block | None = None
        self._coming: Future[Block] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text")

    def __len__(self) -> int:
        """Number of batches in a pass."""
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yield one pass, from the next batch on; the trainer counts where an epoch ends.

        A batch is a tensor of shape (batch_size, context + 1), int64.
        """
        for _ in range(len(self)):
            asked = time.monotonic()
            batch = self._next()
            if self.first_batch_at:  # the first block cannot be read ahead of anything
                self.waited_seconds += time.monotonic() - asked
            self.first_batch_at = self.first_batch_at or time.monotonic()
            yield batch

    def waiting_share(self) -> float:
        """Share of the time since the first batch in which training waited for the next one."""
        elapsed = time.monotonic() - self.first_batch_at
        return self.waited_seconds / elapsed if self.first_batch_at else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return every rank's position."""
        own = (self.rank, {**self._start, "block": self.block_number, "batch": self.next_batch})
        all_ranks: list[Any] = [own]
        if self.world_size > 1 and dist.is_available() and dist.is_initialized():
            all_ranks = [None] * dist.get_world_size()
            dist.all_gather_object(all_ranks, own)
        shape = [self.packer.windows, self.packer.context]
        return {"ranks": dict(all_ranks), "world_size": self.world_size, "block_shape": shape}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: If the number of ranks or the shape of a block is another one.
        """
        shape = [self.packer.windows, self.packer.context]
        saved = (state_dict["world_size"], list(state_dict["block_shape"]))
        if saved != (self.world_size, shape):
            raise ValueError(
                "a text stream resumes on as many devices and with the same windows as it was "
                f"saved with: {saved[0]} devices, blocks of {saved[1][0]} windows of {saved[1][1]} "
                f"tokens; got {self.world_size} and {shape[0]} of {shape[1]}. `data.context`, "
                "`data.batch_size` and `data.shuffle_windows` make the windows"
            )
        own = state_dict["ranks"][self.rank]
        if self._coming is not None:
            self._coming.result()  # the thread must not read on from another place
        self._block, self._coming = None, None
        self.packer.load_state_dict(own)
        self._start = self.packer.state_dict()
        self.block_number, self.next_batch = own["block"], own["batch"]

    def _next(self) -> Tensor:
        """Take the next batch."""
        if self._block is None:
            self._block = (self._coming or self._submit()).result()
            self._coming = self._submit()
        windows, end = self._block
        chosen = self._order(len(windows))[self.next_batch * self.batch_size :][: self.batch_size]
        self.next_batch += 1
        if self.next_batch * self.batch_size == len(windows):
            self.block_number, self.next_batch = self.block_number + 1, 0
            self._start, self._block = end, None
        return windows[chosen].long()

    def _order(self, windows: int) -> Tensor:
        """The order of the windows in this block."""
        if self.seed is None:
            return torch.arange(windows)
        generator = generator_of(self.seed, self.rank, self.block_number)
        return torch.randperm(windows, generator=generator)

    def _submit(self) -> "Future[Block]":
        """Have the thread read a block."""
        return self._thread.submit(lambda: (self.packer.block(), self.packer.state_dict()))
