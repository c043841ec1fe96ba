"""One AdamW step on several ranks that hold the same parameters: each updates a part of them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_root.distributed import Replicas, Stream, pieces_of, replicas, send_streams
from lightning_root.optim.adamw import adamw_update_
from lightning_root.optim.items import Item


def share_adamw_(
    items: Sequence[Item], group: Mapping[str, Any], kept: Replicas
) -> Callable[[], None]:
    """One AdamW step, of which each rank does its part; the parameters are then sent to all.

    Args:
        items: Parameters of any shape, the same on every rank, in the same order.
        group: The options of their parameter group.
        kept: The ranks.

    Returns:
        To be called before the parameters are used.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[Item]] = defaultdict(list)
    for item in items:
        kinds[item.parameter.dtype, item.parameter.device].append(item)
    finish = [_share_alike_(alike, group, kept) for alike in kinds.values()]

    def end() -> None:
        for part in finish:
            part()

    return end


def _share_alike_(
    items: Sequence[Item], group: Mapping[str, Any], kept: Replicas
) -> Callable[[], None]:
    assert kept.owners is not None
    flat = [item.parameter.reshape(-1) for item in items]  # a copy where memory has another order
    pieces: list[list[Tensor]] = [[] for _ in range(kept.size)]
    own: list[Item] = []
    for item, values in zip(items, flat, strict=True):
        parts = kept.owners.parts(item.name)
        place = slice(*parts.range_of(kept.rank))
        gradient = item.gradient.reshape(-1)[place]
        own.append(replace(item, parameter=values[place], gradient=gradient))
        for owner, piece in zip(parts.owners, pieces_of(values, parts.sizes), strict=True):
            pieces[owner].append(piece)
    adamw_update_(own, group)
    streams = [Stream(of_rank) for of_rank in pieces]
    lengths = [len(stream) for stream in streams]
    finish = send_streams(
        streams[kept.rank],
        lengths,
        lambda rank, start, values: streams[rank].write_(start, values),
        flat[0],
        kept,
        replicas.BUCKET_ELEMENTS,
    )

    def end() -> None:
        finish()
        for item, values in zip(items, flat, strict=True):
            if not item.parameter.is_contiguous():
                item.parameter.copy_(values.view_as(item.parameter))

    return end
