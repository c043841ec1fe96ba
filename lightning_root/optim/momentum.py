"""The momentum of matrices: how it begins, its look-ahead, and how it is saved.

Momentum in 8 bits is saved in bfloat16, which holds it exactly: checkpoints then have one form,
whatever ranks and shards they are for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_root.distributed import local_part, placed_like, shard_like
from lightning_root.kernels import tuning_for
from lightning_root.optim import float8
from lightning_root.optim.elementwise import look_ahead_
from lightning_root.optim.items import (
    Item,
    State,
    momentum_dtype,
    state_dtype,
    step_counter,
    zeros_like,
)
from lightning_root.optim.options import iteration_dtype

Group = Mapping[str, Any]


def fresh_momentum(like: Tensor, group: Group) -> State:
    """The state of a matrix that has not been updated yet.

    Args:
        like: The parameter, or what this rank keeps of it.
        group: The options of its parameter group.
    """
    if not _in_float8(group):
        return {"momentum_buffer": zeros_like(like, momentum_dtype(like, group))}
    return {"momentum_buffer": float8.zeros(local_part(like)), "step": step_counter(like, group)}


def saved_fresh(parameter: Tensor, group: Group) -> State:
    """The same as it is saved."""
    state: State = {"momentum_buffer": zeros_like(parameter, momentum_dtype(parameter, group))}
    if _in_float8(group):
        state["step"] = step_counter(parameter, group)
    return state


def look_ahead(item: Item, group: Group) -> Tensor:
    """Advance the momentum; return N of a whole parameter, or of its shards."""
    buffer: Tensor = item.state["momentum_buffer"]
    if float8.is_float8(buffer):
        gradient = local_part(placed_like(item.gradient, item.parameter))
        return shard_like(look_ahead_float8(gradient, item, group), item.parameter)
    direction = torch.empty_like(buffer, dtype=state_dtype(buffer))
    look_ahead_(item.gradient, buffer, direction, group, item.finite)
    return direction


def look_ahead_here(item: Item, group: Group) -> Tensor:
    """The same for this rank's part of both, contiguous, where they are cut alike."""
    gradient, buffer = local_part(item.gradient), local_part(item.state["momentum_buffer"])
    if float8.is_float8(buffer):
        return look_ahead_float8(gradient, item, group)
    direction = torch.empty_like(
        buffer, dtype=state_dtype(buffer), memory_format=torch.contiguous_format
    )
    look_ahead_(gradient, buffer, direction, group)
    return direction


def look_ahead_float8(gradient: Tensor, item: Item, group: Group) -> Tensor:
    """The same for momentum in 8 bits, of which this rank has what belongs to `gradient`."""
    step = item.state["step"]
    if group["capturable"]:
        step = item.state["step"] = step.to(gradient.device)  # of a state from a host
    out = torch.empty(gradient.shape, dtype=torch.float32, device=gradient.device)
    buffer = item.state["momentum_buffer"]
    dtype = iteration_dtype(group["ns_dtype"], item.parameter)
    tuning = tuning_for(group["kernels"], out.device, dtype)
    if tuning is None or not tuning.rounds:
        float8.look_ahead_float8_(gradient, buffer, step, out, group, item.finite)
        return out
    from lightning_root.kernels.triton import rounding

    rounding.look_ahead_float8_(
        gradient.contiguous(),
        buffer,
        step,
        out,
        group["momentum"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        capturable=group["capturable"],
        finite=item.finite,
    )
    return out


def saved_momenta(
    state: Mapping[int, State], groups: Sequence[Group], *, in_parts: bool
) -> dict[int, State]:
    """State as it is saved: what is kept in 8 bits becomes bfloat16.

    Args:
        state: By the position of the parameter.
        groups: The parameter groups.
        in_parts: Each rank keeps parts, which are flat.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    saved = dict(state)
    for position, entry in state.items():
        buffer = entry.get("momentum_buffer")
        if buffer is not None and float8.is_float8(buffer):
            values, parameter = float8.decoded(buffer), parameters[position]
            if not in_parts:
                values = shard_like(values.view(local_part(parameter).shape), parameter)
            saved[position] = {**entry, "momentum_buffer": values}
    return saved


def keep_saved_(state: Mapping[Tensor, State], groups: Sequence[Group]) -> None:
    """Put saved momentum into the form that the options of its group ask for.

    Args:
        state: By parameter.
        groups: The parameter groups.
    """
    matrices = [(g, p) for g in groups if g["role"] == "root" for p in g["params"] if p in state]
    for group, parameter in matrices:
        own = state[parameter]
        if not _in_float8(group):
            own.pop("step", None)
        elif "momentum_buffer" in own:
            own["momentum_buffer"] = float8.encoded(local_part(own["momentum_buffer"]))
            own.setdefault("step", step_counter(parameter, group))


def _in_float8(group: Group) -> bool:
    return bool(group["momentum_dtype"] == "float8")
