"""Flat tensors of every rank, brought to all ranks through buffers of a fixed size."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_root.distributed.replicas import Replicas
from lightning_root.distributed.shards import pieces_of

Receive: TypeAlias = Callable[[int, int, Tensor], None]
"""Takes a rank, the place of the first element in that rank's stream, and elements."""

BUFFERS: Final = 4
"""So many are under way at a time."""


class Stream:
    """Flat tensors, thought of as one behind the other.

    Args:
        tensors: Of one dtype, each of one dimension.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._starts = list(accumulate((tensor.numel() for tensor in tensors), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def views(self, start: int, stop: int) -> list[Tensor]:
        """The tensors, or parts of them, that make up a range."""
        return [
            tensor[max(start - first, 0) : stop - first]
            for tensor, first in zip(self._tensors, self._starts[:-1], strict=True)
            if first < stop and start < first + tensor.numel()
        ]

    def read(self, start: int, out: Tensor) -> None:
        """Copy a range into a flat tensor, as far as there is something."""
        views = self.views(start, start + out.numel())
        for view, piece in zip(views, pieces_of(out, [v.numel() for v in views]), strict=True):
            piece.copy_(view)

    def write_(self, start: int, values: Tensor) -> None:
        """Overwrite a range."""
        views = self.views(start, start + values.numel())
        for view, piece in zip(views, pieces_of(values, [v.numel() for v in views]), strict=True):
            view.copy_(piece)


def send_streams(
    own: Stream,
    lengths: Sequence[int],
    receive: Receive,
    like: Tensor,
    replicas: Replicas,
    elements: int,
) -> Callable[[], None]:
    """Send this rank's stream to all others; every rank must call this.

    Args:
        own: What this rank has.
        lengths: Of the streams of all ranks.
        receive: Called with what the others have sent, part by part.
        like: A tensor of the dtype and on the device that the collective is to have.
        replicas: The ranks.
        elements: At most so many travel at a time, of all ranks together.

    Returns:
        To be called for what is still under way.
    """
    each, longest = max(1, elements // replicas.size), max(lengths)
    under_way: deque[tuple[int, Tensor, Tensor, dist.Work]] = deque()

    def deliver() -> None:
        start, whole, _, work = under_way.popleft()
        work.wait()
        for rank, (part, length) in enumerate(zip(whole, lengths, strict=True)):
            if rank != replicas.rank and start < length:
                receive(rank, start, part[: length - start])

    for start in range(0, longest, each):
        width = min(each, longest - start)
        part = torch.zeros(width, dtype=like.dtype, device=like.device)
        own.read(start, part)
        whole = torch.empty(replicas.size, width, dtype=like.dtype, device=like.device)
        under_way.append((start, whole, part, replicas.gather(part, whole)))
        if len(under_way) > BUFFERS:
            deliver()

    def finish() -> None:
        while under_way:
            deliver()

    return finish
