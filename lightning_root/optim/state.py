"""Parameter state by one table: fresh, saved, loaded, cut into parts for ranks, collected.

The table is `step.STATE`. Checkpoints have one form, whatever ranks and shards they are for:
entries are laid out as the parameter, momentum kept in 8 bits is saved in bfloat16, which holds it
exactly. Where each rank keeps a part of the state, its part of an entry is flat: its matrices of
the momentum, or its range of AdamW's averages, one behind the other. It may be empty, but it is
there, so that all ranks have the same keys.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from lightning_root.distributed import Replicas, StateOwners, replicas
from lightning_root.distributed.collectives import (
    Stream,
    is_sharded,
    local_part,
    pieces_of,
    row_shards,
    scatter_like,
    send_streams,
    shard_like,
)
from lightning_root.distributed.replicas import cost_on, cut_by_size
from lightning_root.distributed.state_owners import Kind, Parts
from lightning_root.optim import low_precision
from lightning_root.optim.blocks import WHOLE, BoundParameter, Group, State, StateSpec
from lightning_root.optim.groups import Member, Members
from lightning_root.optim.stages.momentum import in_float8
from lightning_root.optim.stages.precondition import AGE
from lightning_root.optim.step import STATE
from lightning_root.partition import MatrixView, Role

COLLECTED_ELEMENTS: Final = 1 << 25
"""Of state, so many are made whole at a time, at least one tensor: 128 MiB of float32."""

EXTENTS: Final = {spec.key: spec.extent for spec in STATE}
"""Of what is not in it, entries of the user's, every tensor has its parameter's shape."""


def specs_of(role: Role, group: Group) -> tuple[StateSpec, ...]:
    """Return the entries that the parameters of a group have under a rule, in their order."""
    return tuple(spec for spec in STATE if spec.role == role and spec.is_on(group))


def matrices_shape(
    spec: StateSpec, view: MatrixView, shape: Sequence[int], group: Group
) -> tuple[int, ...]:
    """Return the shape of state by matrices: (*stack, numbers of all matrices of an entry)."""
    of_entry = spec.sizes(view, [1] * view.stack + list(shape[view.stack :]), group)
    return (*shape[: view.stack], sum(of_entry))


class StateParts(NamedTuple):
    """Which rank keeps which part of one parameter's state."""

    parts: Parts  # owner and number of entries of each
    # how the parameter is cut into matrices, a part each; None for ranges of entries
    view: MatrixView | None
    numbers: Mapping[str, list[int]] = {}  # of each matrix, of entries that are kept by these

    def pieces(self, key: str, whole: Tensor) -> list[Tensor]:
        """Cut an entry of the state, as views where memory allows."""
        if self.view is None:
            return pieces_of(whole.reshape(-1), self.parts.sizes)
        if key in self.numbers:
            return pieces_of(whole.reshape(-1), self.numbers[key])
        return self.view.cut(whole)

    def part(self, key: str, whole: Tensor, rank: int) -> Tensor:
        """Return a rank's part of an entry, flat."""
        pieces = self.pieces(key, whole)
        own = [pieces[number].reshape(-1) for number in self.parts.of(rank)]
        return torch.cat([whole.new_empty(0), *own])

    def size(self, key: str, rank: int) -> int:
        """Return how many numbers of an entry a rank keeps."""
        if key not in self.numbers:
            return self.parts.size(rank)
        return sum(self.numbers[key][number] for number in self.parts.of(rank))

    def whole(self, key: str, like: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Put the parts of all ranks together on the CPU, entries laid out in memory as `like`."""
        by_matrices, shape = key in self.numbers, tuple(like.shape)
        if by_matrices:
            stack = shape[: self.view.stack] if self.view is not None else ()
            shape = (*stack, sum(self.numbers[key]) // math.prod(stack))
        logical = torch.empty(shape, dtype=parts[0].dtype)
        pieces = self.pieces(key, logical)
        for rank, part in enumerate(parts):
            own = [pieces[number] for number in self.parts.of(rank)]
            for piece, values in zip(own, pieces_of(part, [p.numel() for p in own]), strict=True):
                piece.copy_(values.view_as(piece))
        if by_matrices or like.is_contiguous():
            return logical
        laid_out = torch.empty_like(
            like, dtype=logical.dtype, device="cpu", memory_format=torch.preserve_format
        )
        return laid_out.copy_(logical)


def is_cut(key: str, value: Any) -> bool:
    """Return whether ranks keep parts of an entry: of all tensors but counters."""
    return isinstance(value, Tensor) and EXTENTS.get(key) != "counter"


def add_fresh_(
    bound: BoundParameter,
    specs: Sequence[StateSpec],
    group: Group,
    parts: StateParts | None,
    rank: int,
) -> None:
    """Add what the state of a parameter lacks: whole, or this rank's part of it."""
    for spec in specs:
        if spec.key in bound.state:
            continue
        own = local_part(bound.parameter)
        in_parts = parts if spec.extent != "counter" else None
        if in_parts:
            own = own.new_empty(in_parts.size(spec.key, rank))
        if spec.key == "momentum_buffer" and in_float8(group):
            bound.state[spec.key] = low_precision.float8_zeros(own)
        elif in_parts:
            bound.state[spec.key] = torch.zeros_like(own, dtype=spec.dtype(own, group))
        else:
            bound.state[spec.key] = _fresh(spec, bound.parameter, bound.view, group)


def drop_matrices_(state: State) -> None:
    """Forget what is kept by matrices, and how old it is, where these are cut otherwise."""
    for key, extent in EXTENTS.items():
        if extent == "matrices" or key == AGE:
            state.pop(key, None)


def drop_unfit_(own: State, member: Member, parts: StateParts | None, rank: int) -> None:
    """Forget what is kept by matrices, and how old it is, where options give it another size."""
    for spec in specs_of(member.role, member.group):
        value = own.get(spec.key)
        if spec.extent != "matrices" or value is None:
            continue
        shape = matrices_shape(spec, member.view or WHOLE, member.parameter.shape, member.group)
        if parts is not None:
            shape = (parts.size(spec.key, rank),)
        if tuple(value.shape) != shape:
            del own[spec.key]
            own.pop(AGE, None)


def fresh_saved(member: Member, device: torch.device | None) -> State:
    """Return the state of a parameter before its first update, as it is saved."""
    group, parameter, _ = member
    view = member.view or WHOLE
    specs = specs_of(member.role, group)
    fresh = {spec.key: _fresh(spec, parameter, view, group) for spec in specs}
    return {key: value.to(device) for key, value in fresh.items()} if device else fresh


def _fresh(spec: StateSpec, parameter: Tensor, view: MatrixView, group: Group) -> Tensor:
    """Return zeros, laid out as the parameter is; a counter where torch keeps it."""
    dtype = spec.dtype(parameter, group)
    if spec.extent == "counter":
        on_device = (group["fused"] or group["capturable"]) and spec.key != AGE
        device = parameter.device if on_device else torch.device("cpu")
        return torch.zeros((), dtype=dtype, device=device)
    if spec.extent == "entries":
        return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
    shape, local = matrices_shape(spec, view, parameter.shape, group), local_part(parameter)
    if is_stack_in_shards(parameter, view):
        own = torch.zeros(*local.shape[: view.stack], shape[-1], dtype=dtype, device=local.device)
        return shard_like(own, parameter, shape)
    return torch.zeros(shape, dtype=dtype, device=local.device)


def is_stack_in_shards(parameter: Tensor, view: MatrixView) -> bool:
    """Return whether every rank updates matrices of its own, and has the state of these alone."""
    return view.stack > 0 and row_shards(parameter) is not None


def placed_matrices(values: Tensor, parameter: Tensor, view: MatrixView) -> Tensor:
    """Lay state by matrices out as steps have it: torch loads it whole where there was none."""
    if is_stack_in_shards(parameter, view) and not is_sharded(values):
        return scatter_like(values, parameter)
    return values


def to_saved(state: Mapping[Any, Any], present: Members, *, in_parts: bool) -> dict[Any, Any]:
    """Return state by position as it is saved: what is kept in 8 bits in bfloat16."""
    saved = dict(state)
    for position, (_, parameter, _) in enumerate(present):
        entry = state.get(position, {})
        buffer = entry.get("momentum_buffer")
        if isinstance(buffer, Tensor) and low_precision.is_float8(buffer):
            values = low_precision.float8_decoded(buffer)
            if not in_parts:
                values = shard_like(values.view(local_part(parameter).shape), parameter)
            saved[position] = {**entry, "momentum_buffer": values}
    return saved


def to_kept_(state: Mapping[Tensor, State], present: Members) -> None:
    """Bring saved state into the form that the options of its groups ask for."""
    for member in present:
        group, parameter, _ = member
        own = state.get(parameter)
        if not own:
            continue
        specs = specs_of(member.role, group)
        for key in EXTENTS.keys() - {spec.key for spec in specs} & own.keys():
            own.pop(key, None)
        if in_float8(group) and "momentum_buffer" in own:
            own["momentum_buffer"] = low_precision.float8_encoded(
                local_part(own["momentum_buffer"])
            )
            for spec in specs:
                if spec.extent == "counter" and spec.key not in own:
                    own[spec.key] = _fresh(spec, parameter, WHOLE, group)


def follow_dtype_(own: State, member: Member) -> None:
    """Bring state into the precision that it has for a parameter that has changed its own."""
    for spec in specs_of(member.role, member.group):
        value = own.get(spec.key)
        if spec.extent == "counter" or value is None or low_precision.is_float8(value):
            continue
        dtype = spec.dtype(member.parameter, member.group)
        if value.dtype != dtype:
            own[spec.key] = value.to(dtype)


def refuse_sharded(present: Members) -> None:
    """Raise ValueError for a DTensor, whose state is sharded as it is."""
    for member in present:
        if is_sharded(member.parameter):
            raise ValueError(
                f"`shard_state` must be False for `{member.name}`, which is sharded (a DTensor) "
                "and its state with it; under FSDP2 every rank has a part of both without it"
            )


def assign_parts(owners: StateOwners, present: Members) -> dict[str, StateParts]:
    """Decide who keeps the state of parameters that are new; return the parts of all, by name."""
    refuse_sharded(present)
    kinds: dict[str, Kind] = {}
    view_of: dict[str, MatrixView | None] = {}
    for member in present:
        parameter = member.parameter
        view = view_of[member.name] = member.view if parameter.numel() > 0 else None
        kinds[member.name] = tuple(view.matrices(parameter.shape)) if view else parameter.numel()
    devices = {member.parameter.device.type for member in present}
    cost = cost_on(torch.device("cpu" if "cpu" in devices else "cuda"))
    owners.include(kinds, max([1, *(member.group["ns_steps"] for member in present)]), cost)
    found = {}
    for member in present:
        view, group, numbers = view_of[member.name], member.group, {}
        for spec in specs_of(member.role, group):
            if view is not None and spec.extent == "matrices":
                numbers[spec.key] = spec.sizes(view, member.parameter.shape, group)
        found[member.name] = StateParts(owners.parts(member.name), view, numbers)
    return found


def own_parts(
    whole: Mapping[str, Any], present: Members, parts: Mapping[str, StateParts], rank: int
) -> dict[Any, State]:
    """Return a rank's part of the state in a state dict whose groups match ROOT's one by one."""
    identities = [identity for group in whole["param_groups"] for identity in group["params"]]
    state: dict[Any, State] = {}
    for identity, member in zip(identities, present, strict=True):
        name = member.name
        for key, value in whole["state"].get(identity, {}).items():
            own = state.setdefault(identity, {})
            if EXTENTS.get(key) == "matrices" and key not in parts[name].numbers:
                continue  # of a stage that is off
            own[key] = parts[name].part(key, value, rank) if is_cut(key, value) else value
    return state


class _Entry(NamedTuple):
    """A tensor of state of which this rank has a part."""

    position: int
    key: str
    part: Tensor
    parts: StateParts
    parameter: Tensor


def collected(
    state: Mapping[int, State],
    present: Members,
    parts: Mapping[str, StateParts],
    kept: Replicas,
    device: torch.device | None,
) -> dict[int, State]:
    """Bring the parts of all ranks together on the CPU of the first; a collective."""
    # `device` is where the process group can communicate, by default where the state is.
    entries: dict[torch.dtype, list[_Entry]] = defaultdict(list)
    whole: dict[int, State] = {}
    for position, member in enumerate(present):
        name, parameter = member.name, member.parameter
        for key, value in state.get(position, {}).items():
            whole.setdefault(position, {})[key] = value  # keeps the order of the keys
            if is_cut(key, value):
                entries[value.dtype].append(_Entry(position, key, value, parts[name], parameter))
            elif isinstance(value, Tensor):
                whole[position][key] = value.detach().cpu().clone()
    for alike in entries.values():
        sizes = [entry.parameter.numel() for entry in alike]
        for some in cut_by_size(alike, sizes, COLLECTED_ELEMENTS):
            for entry, tensor in zip(some, _made_whole(some, kept, device), strict=False):
                whole[entry.position][entry.key] = tensor
    return whole if kept.rank == 0 else {}


def _made_whole(
    entries: Sequence[_Entry], kept: Replicas, device: torch.device | None
) -> list[Tensor]:
    """Return the whole of some entries on the first rank, nothing on the others."""
    sizes = [[e.parts.size(e.key, rank) for e in entries] for rank in range(kept.size)]
    lengths = [sum(of_rank) for of_rank in sizes]
    own = Stream([entry.part for entry in entries])
    like = entries[0].part[:0].to(device)
    if kept.rank != 0:
        send_streams(own, lengths, _discard, like, kept.group, replicas.BUCKET_ELEMENTS)()
        return []
    flat = [torch.empty(length, dtype=like.dtype) for length in lengths]
    own.read(0, flat[0])

    def receive(rank: int, start: int, values: Tensor) -> None:
        flat[rank][start : start + values.numel()].copy_(values)

    send_streams(own, lengths, receive, like, kept.group, replicas.BUCKET_ELEMENTS)()
    by_rank = [pieces_of(values, sizes[rank]) for rank, values in enumerate(flat)]
    return [
        entry.parts.whole(entry.key, entry.parameter, parts)
        for entry, *parts in zip(entries, *by_rank, strict=True)
    ]


def _discard(rank: int, start: int, values: Tensor) -> None:
    """Ignore what is received: a collective sends it to all."""
