"""State of which each rank keeps a part: who has what, and how it is cut.

A rank's part of a tensor of state is flat: its matrices of the momentum, or its range of AdamW's
averages, one behind the other. It may be empty, but it is there, so that all ranks have the same
keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_root.distributed import (
    Kind,
    Parts,
    Replicas,
    StateOwners,
    cost_on,
    is_sharded,
    pieces_of,
)
from lightning_root.optim.float8 import is_float8
from lightning_root.optim.groups import Groups, members
from lightning_root.optim.guard import WHOLE
from lightning_root.optim.items import Item, State
from lightning_root.optim.momentum import look_ahead_float8
from lightning_root.partition import MatrixView


class Cut(NamedTuple):
    """How one parameter's state is kept.

    Args:
        parts: Who has what.
        view: How it is cut into matrices; None for even ranges of elements.
    """

    parts: Parts
    view: MatrixView | None

    def pieces(self, whole: Tensor) -> list[Tensor]:
        """The parts of a tensor, views where its memory allows."""
        if self.view is not None:
            return self.view.cut(whole)
        return pieces_of(whole.reshape(-1), self.parts.sizes)

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's part of a tensor, flat."""
        pieces = self.pieces(whole)
        own = [pieces[number].reshape(-1) for number in self.parts.of(rank)]
        return torch.cat([whole.new_empty(0), *own])

    def whole(self, like: Tensor, dtype: torch.dtype, parts: Sequence[Tensor]) -> Tensor:
        """Put the parts of all ranks together, on the CPU, laid out in memory as `like` is."""
        logical = torch.empty(like.shape, dtype=dtype)
        pieces = self.pieces(logical)
        for rank, part in enumerate(parts):
            own = [pieces[number] for number in self.parts.of(rank)]
            for piece, values in zip(own, pieces_of(part, [p.numel() for p in own]), strict=True):
                piece.copy_(values.view_as(piece))
        if like.is_contiguous():
            return logical
        laid_out = torch.empty_like(
            like, dtype=dtype, device="cpu", memory_format=torch.preserve_format
        )
        return laid_out.copy_(logical)


def refuse_sharded(groups: Groups) -> None:
    """Refuse parameters whose state is sharded as they are.

    Raises:
        ValueError: If a parameter is a DTensor.
    """
    for _, name, parameter in members(groups):
        if is_sharded(parameter):
            raise ValueError(
                f"`shard_state` must be False for `{name}`, which is sharded (a DTensor) and its "
                "state with it; under FSDP2 every rank has a part of both without it"
            )


def settled(owners: StateOwners, groups: Groups, views: Mapping[str, MatrixView]) -> dict[str, Cut]:
    """Decide who keeps the state of parameters that are new.

    Args:
        owners: What has been decided before.
        groups: The parameter groups.
        views: How parameters are cut into matrices, by name; the others are taken whole.

    Returns:
        How the state of each parameter is kept, by name.

    Raises:
        ValueError: If a parameter is a DTensor.
    """
    refuse_sharded(groups)
    kinds: dict[str, Kind] = {}
    view_of: dict[str, MatrixView | None] = {}
    for group, name, parameter in members(groups):
        is_root = group["role"] == "root" and parameter.numel() > 0
        view = view_of[name] = views.get(name, WHOLE) if is_root else None
        kinds[name] = tuple(view.matrices(parameter.shape)) if view else parameter.numel()
    devices = {parameter.device.type for _, _, parameter in members(groups)}
    cost = cost_on(torch.device("cpu" if "cpu" in devices else "cuda"))
    owners.include(kinds, max([1, *(group["ns_steps"] for group in groups)]), cost)
    return {name: Cut(owners.parts(name), view) for name, view in view_of.items()}


def own_parts(
    whole: Mapping[str, Any], groups: Groups, cuts: Mapping[str, Cut], rank: int
) -> dict[Any, State]:
    """A rank's part of a whole state.

    Args:
        whole: A state dict, whose groups match `groups` one by one.
        groups: The parameter groups.
        cuts: Who keeps what, by name.
        rank: Whose part.
    """
    identities = [identity for group in whole["param_groups"] for identity in group["params"]]
    state: dict[Any, State] = {}
    for identity, (_, name, _) in zip(identities, members(groups), strict=True):
        for key, value in whole["state"].get(identity, {}).items():
            own = state.setdefault(identity, {})
            own[key] = cuts[name].part(value, rank) if is_cut(key, value) else value
    return state


def is_cut(key: str, value: Any) -> bool:
    """Whether an entry of a parameter's state is kept in parts: all tensors but the counter."""
    return key != "step" and isinstance(value, Tensor)


def own_part(item: Item, kept: Replicas) -> Tensor:
    """Memory, of the parameter's dtype, for what this rank keeps of a parameter's matrices."""
    return item.parameter.new_empty(_parts_of(item, kept).size(kept.rank))


def own_gradient_and_momenta(
    item: Item, kept: Replicas, group: Mapping[str, Any]
) -> tuple[Tensor | None, list[Tensor]]:
    """G, and M of each matrix; None, and N of each where M is kept in 8 bits.

    Of the matrices that others keep there is a stand-in, which has no memory.
    """
    parts, flat = _parts_of(item, kept), item.state["momentum_buffer"]
    gradient: Tensor | None = item.gradient
    if is_float8(flat):
        own_gradient = Cut(parts, item.view).part(item.gradient, kept.rank)
        gradient, flat = None, look_ahead_float8(own_gradient, item, group)
    own = iter(pieces_of(flat, [parts.sizes[number] for number in parts.of(kept.rank)]))
    nothing = flat.new_zeros(())
    return gradient, [
        next(own).view(shape) if owner == kept.rank else nothing.expand(shape)
        for shape, owner in zip(item.view.matrices(item.parameter.shape), parts.owners, strict=True)
    ]


def _parts_of(item: Item, kept: Replicas) -> Parts:
    assert kept.owners is not None
    return kept.owners.parts(item.name)
