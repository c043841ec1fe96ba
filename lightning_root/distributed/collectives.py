"""Collectives, and tensors of which each rank has a part; plain tensors pass through."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

# Takes a rank, the place of the first element in that rank's stream, and elements
Receive: TypeAlias = Callable[[int, int, Tensor], None]

BUFFERS_UNDER_WAY: Final = 4  # of a stream, at a time

# torch 2.13 warns of the old name, which is the only one of 2.11.
_all_gather: Final = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this is a DTensor, whose local part may be less than the whole."""
    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank has of a DTensor; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor) -> Tensor:
    """Return the whole of a DTensor on every rank; a plain tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(module: nn.Module) -> None:
    """Put the sharded parameters of FSDP2 back where a forward pass has left whole ones.

    Without a backward pass, as in validation, `module.parameters()` yields the whole parameters
    until the next step; the sharded ones are those that are trained.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def scatter_like(whole: Tensor, like: Tensor) -> Tensor:
    """Lay `whole`, equal on all ranks, out as the DTensor `like`, without communication."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def shard_like(local: Tensor, like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Take `local` for this rank's part of a tensor placed as `like`, of any shape."""
    if not isinstance(like, DTensor):
        return local
    whole = like if shape is None else torch.empty(tuple(shape), device="meta")
    return DTensor.from_local(
        local,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Exchange the parts of a DTensor until they lie as those of `like`; others are unchanged."""
    if not isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor
    return tensor.redistribute(like.device_mesh, like.placements)


def all_ranks_agree(flags: Tensor, tensors: Sequence[Tensor]) -> Tensor:  # (k,) bool
    """Return the logical and of flags over all ranks that hold a part of one of the tensors."""
    # Ranks see different shards, but must skip the same matrices. Plain tensors need no exchange:
    # data parallelism has already made their gradients equal.
    meshes = {tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)}
    if not meshes:
        return flags
    votes = flags.to(torch.int32)
    for mesh in meshes:
        for dimension in range(mesh.ndim):
            dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=mesh.get_group(dimension))
    return votes.bool()


@dataclass(frozen=True)
class RowShards:
    """The ranks, in the order of the rows, among which a parameter's first dimension is cut."""

    group: dist.ProcessGroup

    def rows(self, total: int) -> list[tuple[int, int]]:
        """Return first row and end of each rank, as `torch.chunk` cuts; late ones may be empty."""
        each = -(-total // self.group.size())
        return [
            (min(total, rank * each), min(total, (rank + 1) * each))
            for rank in range(self.group.size())
        ]


def row_shards(parameter: Tensor) -> RowShards | None:
    """Return how a parameter is cut by rows, if that is all that is done to it."""
    # On a mesh of several dimensions (replicate x shard) the ranks are those of one replica. None
    # for plain tensors, and for other placements or memory formats.
    if not isinstance(parameter, DTensor) or not parameter.is_contiguous():
        return None  # rows must lie one behind the other
    cuts = [cut for cut in enumerate(parameter.placements) if not cut[1].is_replicate()]
    # Not the strided kind of tensor parallelism
    if len(cuts) != 1 or type(cuts[0][1]) is not Shard or not cuts[0][1].is_shard(0):
        return None
    return RowShards(parameter.device_mesh.get_group(cuts[0][0]))


def overlap(rows: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Return the rows that two ranges have in common; an empty range where there are none."""
    start, stop = max(rows[0], block[0]), min(rows[1], block[1])
    return start, max(start, stop)


def pieces_of(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Cut a flat tensor into consecutive views."""
    bounds = list(pairwise(accumulate(sizes, initial=0)))
    return [flat[start:stop] for start, stop in bounds]


def all_gather(part: Tensor, whole: Tensor, group: dist.ProcessGroup) -> dist.Work:
    """Begin to bring the parts of all ranks, (width,), to all ranks, (size, width)."""
    work: dist.Work | None = _all_gather(whole.flatten(), part, group, async_op=True)
    assert work is not None
    return work


class Exchange:
    """One all-to-all, under way when this object is made."""

    def __init__(
        self,
        pieces: Sequence[Sequence[Tensor]],  # for each rank what it gets, of any shapes
        sizes: Sequence[int],  # how many elements each rank sends to this one
        like: Tensor,  # of the dtype and on the device of all pieces
        group: dist.ProcessGroup,
    ) -> None:
        flat = [piece.reshape(-1) for of_rank in pieces for piece in of_rank]
        self._sent = torch.cat(flat) if flat else like.new_empty(0)  # kept until it has been sent
        self._received = like.new_empty(sum(sizes))
        self._sizes = list(sizes)
        self._work = dist.all_to_all_single(
            self._received,
            self._sent,
            self._sizes,
            [sum(piece.numel() for piece in of_rank) for of_rank in pieces],
            group=group,
            async_op=True,
        )

    def wait(self) -> list[Tensor]:
        """Return what each rank has sent, flat."""
        assert self._work is not None
        self._work.wait()
        return pieces_of(self._received, self._sizes)


class Stream:
    """Flat tensors of one dtype, thought of as one behind the other."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._starts = list(accumulate((tensor.numel() for tensor in tensors), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def views(self, start: int, stop: int) -> list[Tensor]:
        """Return the tensors, or parts of them, that make up a range."""
        return [
            tensor[max(start - first, 0) : stop - first]
            for tensor, first in zip(self._tensors, self._starts[:-1], strict=True)
            if first < stop and start < first + tensor.numel()
        ]

    def _beside(self, start: int, flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Return views of the range that begins here, and the parts of a flat tensor for them."""
        views = self.views(start, start + flat.numel())
        return zip(views, pieces_of(flat, [view.numel() for view in views]), strict=True)

    def read(self, start: int, out: Tensor) -> None:
        """Copy a range into a flat tensor, as far as there is something."""
        for view, piece in self._beside(start, out):
            piece.copy_(view)

    def write_(self, start: int, values: Tensor) -> None:
        """Overwrite a range."""
        for view, piece in self._beside(start, values):
            view.copy_(piece)


def send_streams(
    own: Stream,  # what this rank has
    lengths: Sequence[int],  # of the streams of all ranks
    receive: Receive,  # takes what the others have sent, part by part
    like: Tensor,  # of the dtype and on the device that the collective is to have
    group: dist.ProcessGroup,
    elements: int,  # at most so many travel at a time, of all ranks together
) -> Callable[[], None]:
    """Send this rank's stream to all others, who call this too; what is returned ends it."""
    size, me = group.size(), group.rank()
    each, longest = max(1, elements // size), max(lengths)
    under_way: deque[tuple[int, Tensor, Tensor, dist.Work]] = deque()

    def deliver() -> None:
        start, whole, _, work = under_way.popleft()
        work.wait()
        for rank, (part, length) in enumerate(zip(whole, lengths, strict=True)):
            if rank != me and start < length:
                receive(rank, start, part[: length - start])

    for start in range(0, longest, each):
        width = min(each, longest - start)
        part = torch.zeros(width, dtype=like.dtype, device=like.device)
        own.read(start, part)
        whole = torch.empty(size, width, dtype=like.dtype, device=like.device)
        under_way.append((start, whole, part, all_gather(part, whole, group)))
        if len(under_way) > BUFFERS_UNDER_WAY:
            deliver()

    def finish() -> None:
        while under_way:
            deliver()

    return finish
