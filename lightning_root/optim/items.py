"""What both update rules work on: parameters with a gradient, and their state in full precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_root.distributed import cut_by_size
from lightning_root.partition import MatrixView

State: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One parameter with a gradient, and its state.

    Args:
        name: Of the parameter.
        parameter: The whole of it, or a DTensor, or some matrices of a stack.
        gradient: Alike.
        state: With `momentum_buffer`, alike or as `float8` keeps it, or AdamW's.
        view: How it is cut into matrices.
        first: Number of its first matrix within the parameter of that name.
        finite: Whether the gradient may be used, on the device; None where it may.
    """

    name: str
    parameter: Tensor
    gradient: Tensor
    state: State
    view: MatrixView
    first: int = 0
    finite: Tensor | None = None


def portions(items: Sequence[Item], elements: int) -> list[list[Item]]:
    """Consecutive items of at most so many elements together, at least one at a time."""
    return cut_by_size(items, [item.parameter.numel() for item in items], elements)


def state_dtype(parameter: Tensor) -> torch.dtype:
    """float32, or float64 for float64 parameters."""
    return torch.promote_types(parameter.dtype, torch.float32)


def momentum_dtype(parameter: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """In which the momentum of a matrix is saved, and kept where it is not kept in 8 bits."""
    return state_dtype(parameter) if group["momentum_dtype"] == "auto" else torch.bfloat16


def shared_dtype(momentum: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """In which the updates of matrices travel between ranks."""
    return torch.bfloat16 if group["share_dtype"] == "bfloat16" else state_dtype(momentum)


def step_counter(parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """On the host, as torch keeps it, unless it is read on the device."""
    on_device = group["fused"] or group["capturable"]
    device = parameter.device if on_device else torch.device("cpu")
    return torch.zeros((), dtype=torch.float32, device=device)


def zeros_like(parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """State for a parameter, laid out as it is; by default of its `state_dtype`."""
    dtype = dtype or state_dtype(parameter)
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
