"""Parameters whose rows are spread over ranks, as FSDP2 leaves them: who has which rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class RowShards:
    """The ranks among which the first dimension of a parameter is cut.

    Args:
        group: The ranks, in the order of the rows.
    """

    group: dist.ProcessGroup

    def rows(self, total: int) -> list[tuple[int, int]]:
        """First row and the row after the last, of each rank; as `torch.chunk` cuts.

        Args:
            total: Size of the first dimension. Late ranks may have fewer rows, or none.
        """
        each = -(-total // self.group.size())
        return [
            (min(total, rank * each), min(total, (rank + 1) * each))
            for rank in range(self.group.size())
        ]


def row_shards(parameter: Tensor, gradient: Tensor) -> RowShards | None:
    """How a parameter and its gradient are cut by rows, if that is all that is done to them.

    On a mesh of several dimensions (replicate x shard) the ranks are those of one replica. None for
    plain tensors, other placements or memory formats, and layouts that differ between the two.
    """
    if not isinstance(parameter, DTensor) or not isinstance(gradient, DTensor):
        return None
    alike = gradient.placements == parameter.placements
    if not alike or not parameter.is_contiguous():  # rows must lie one behind the other
        return None
    placements = parameter.placements
    cuts = [i for i, placement in enumerate(placements) if not placement.is_replicate()]
    if len(cuts) != 1:
        return None
    (dimension,) = cuts
    plain = type(placements[dimension]) is Shard  # not the strided kind of tensor parallelism
    if not plain or not placements[dimension].is_shard(0):
        return None
    return RowShards(parameter.device_mesh.get_group(dimension))


def overlap(rows: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """The rows that two ranges have in common; an empty range where there are none."""
    start, stop = max(rows[0], block[0]), min(rows[1], block[1])
    return start, max(start, stop)


def pieces_of(flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive parts of a flat tensor: views."""
    bounds = list(pairwise(accumulate(sizes, initial=0)))
    return [flat[start:stop] for start, stop in bounds]


class Exchange:
    """One all-to-all: every rank is sent its pieces, and what the others send comes in.

    It is under way when this object is made.

    Args:
        pieces: For each rank what it gets, flattened one behind the other; any shapes, also none.
        sizes: How many elements each rank sends to this one.
        like: A tensor of the dtype and on the device of all pieces.
        group: The ranks.
    """

    def __init__(
        self,
        pieces: Sequence[Sequence[Tensor]],
        sizes: Sequence[int],
        like: Tensor,
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
        """What each rank has sent, flat."""
        assert self._work is not None
        self._work.wait()
        return pieces_of(self._received, self._sizes)
