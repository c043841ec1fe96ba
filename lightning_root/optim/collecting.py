"""The state of which each rank keeps a part, made whole on the first of them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from lightning_root.distributed import (
    Replicas,
    Stream,
    cut_by_size,
    pieces_of,
    replicas,
    send_streams,
)
from lightning_root.optim.groups import Groups, members
from lightning_root.optim.items import State
from lightning_root.optim.parts import Cut, is_cut

COLLECTED_ELEMENTS: Final = 1 << 25
"""Of state, so many are made whole at a time, at least one tensor: 128 MiB of float32."""


class Entry(NamedTuple):
    """One tensor of state.

    Args:
        position: Of its parameter among all.
        key: In the parameter's state.
        part: What this rank has of it.
        cut: Who has what.
        parameter: Whose state it is.
    """

    position: int
    key: str
    part: Tensor
    cut: Cut
    parameter: Tensor


def collected(
    state: Mapping[int, State],
    groups: Groups,
    cuts: Mapping[str, Cut],
    kept: Replicas,
    device: torch.device | None,
) -> dict[int, State]:
    """Bring the parts of all ranks together; a collective.

    Args:
        state: This rank's parts, by the position of the parameter.
        groups: The parameter groups.
        cuts: Who has what, by name.
        kept: The ranks.
        device: On which the process group can communicate; default: where the state is.

    Returns:
        The whole state on the CPU of the first rank, nothing on the others.
    """
    entries: dict[torch.dtype, list[Entry]] = defaultdict(list)
    whole: dict[int, State] = {}
    for position, (_, name, parameter) in enumerate(members(groups)):
        for key, value in state.get(position, {}).items():
            whole.setdefault(position, {})[key] = value  # keeps the order of the keys
            if is_cut(key, value):
                entries[value.dtype].append(Entry(position, key, value, cuts[name], parameter))
            elif isinstance(value, Tensor):
                whole[position][key] = value.detach().cpu().clone()
    for alike in entries.values():
        sizes = [entry.parameter.numel() for entry in alike]
        for some in cut_by_size(alike, sizes, COLLECTED_ELEMENTS):
            for entry, tensor in zip(some, _made_whole(some, kept, device), strict=False):
                whole[entry.position][entry.key] = tensor
    return whole if kept.rank == 0 else {}


def _made_whole(
    entries: Sequence[Entry], kept: Replicas, device: torch.device | None
) -> list[Tensor]:
    """The whole tensors of some entries on the first rank, nothing on the others."""
    lengths = [sum(e.cut.parts.size(rank) for e in entries) for rank in range(kept.size)]
    own = Stream([entry.part for entry in entries])
    like = entries[0].part[:0].to(device)
    if kept.rank != 0:
        send_streams(own, lengths, _discard, like, kept, replicas.BUCKET_ELEMENTS)()
        return []
    flat = [torch.empty(length, dtype=like.dtype) for length in lengths]
    own.read(0, flat[0])

    def receive(rank: int, start: int, values: Tensor) -> None:
        flat[rank][start : start + values.numel()].copy_(values)

    send_streams(own, lengths, receive, like, kept, replicas.BUCKET_ELEMENTS)()
    by_rank = [
        pieces_of(values, [e.cut.parts.size(rank) for e in entries])
        for rank, values in enumerate(flat)
    ]
    return [
        entry.cut.whole(entry.parameter, like.dtype, parts)
        for entry, *parts in zip(entries, *by_rank, strict=True)
    ]


def _discard(rank: int, start: int, values: Tensor) -> None:
    """What the others do with what they receive: a collective sends it to all."""
