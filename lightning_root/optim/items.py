"""What both update rules work on: parameters with a gradient, and their state in full precision."""

from collections.abc import Sequence
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
        state: With `momentum_buffer`, alike, or AdamW's.
        view: How it is cut into matrices.
        first: Number of its first matrix within the parameter of that name.
    """

    name: str
    parameter: Tensor
    gradient: Tensor
    state: State
    view: MatrixView
    first: int = 0


def portions(items: Sequence[Item], elements: int) -> list[list[Item]]:
    """Consecutive items of at most so many elements together, at least one at a time."""
    return cut_by_size(items, [item.parameter.numel() for item in items], elements)


def state_dtype(parameter: Tensor) -> torch.dtype:
    """float32, or float64 for float64 parameters."""
    return torch.promote_types(parameter.dtype, torch.float32)


def zeros_like(parameter: Tensor) -> Tensor:
    """State for a parameter, laid out as it is."""
    return torch.zeros_like(
        parameter, dtype=state_dtype(parameter), memory_format=torch.preserve_format
    )
