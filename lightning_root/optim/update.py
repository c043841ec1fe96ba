"""The two update rules, as functions of lists of tensors.

`root_update_` is ROOT's (arXiv:2511.20626, Algorithm 2, with the Nesterov look-ahead of the
authors' script as an option), for matrices; `adamw_update_` is torch's AdamW for everything else.
Both keep their state and do their arithmetic in float32 or better and round once, into the
parameter.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_root.coefficients import lookup
from lightning_root.distributed import gather, scatter_like
from lightning_root.functional import clip_outliers, newton_schulz, update_scale
from lightning_root.optim.options import iteration_dtype

State: TypeAlias = dict[str, Any]

STACK_ELEMENTS = 1 << 25
"""At most this many elements (128 MiB of float32) are orthogonalized at a time."""


@dataclass(frozen=True, slots=True)
class Item:
    """One parameter with a gradient, and its state."""

    parameter: Tensor
    gradient: Tensor
    state: State


def root_update_(items: Sequence[Item], group: Mapping[str, Any]) -> None:
    """One ROOT step of matrices, in place.

    M <- mu M + G; N <- G + mu M (Nesterov) or M; B <- clamp(N, -eps, eps); U <- orthogonalize(B);
    W <- (1 - lr wd) W - lr scale U.

    Args:
        items: Parameters of two or more dimensions, flattened to (shape[0], rest).
        group: The options of their parameter group.
    """
    for stack in _stacks(items):
        directions = [
            _as_wide(gather(direction)) for direction in _momentum_(stack, group)
        ]  # (m, n), m <= n
        updates = _orthogonalize(torch.stack(directions), stack[0].parameter, group)
        for item, update in zip(stack, updates, strict=True):
            _apply_(item.parameter, update, group)


def adamw_update_(items: Sequence[Item], group: Mapping[str, Any]) -> None:
    """One AdamW step, in place, by `torch.optim.adamw.adamw`."""
    exact = [item for item in items if _state_dtype(item.parameter) == item.parameter.dtype]
    rounded = [item for item in items if _state_dtype(item.parameter) != item.parameter.dtype]
    if exact:
        _adamw_(exact, [item.parameter for item in exact], group)
    if rounded:
        wide = [item.parameter.to(_state_dtype(item.parameter)) for item in rounded]
        _adamw_(rounded, wide, group)
        for item, value in zip(rounded, wide, strict=True):
            item.parameter.copy_(value)


def matrix_shape(parameter: Tensor) -> tuple[int, int]:
    """(rows, columns) of a parameter as a matrix: (out, in * kernel elements) for a convolution."""
    rows = parameter.shape[0]
    return rows, parameter.shape[1:].numel()


def _stacks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items whose matrices have equal size up to transposition, in bounded portions."""
    by_size: dict[tuple[object, ...], list[Item]] = defaultdict(list)
    for item in items:
        parameter = item.parameter
        key = (*sorted(matrix_shape(parameter)), parameter.dtype, parameter.device)
        by_size[key].append(item)
    for equal in by_size.values():
        size = max(1, equal[0].parameter.numel())
        portion = max(1, STACK_ELEMENTS // size)
        for start in range(0, len(equal), portion):
            yield equal[start : start + portion]


def _momentum_(stack: Sequence[Item], group: Mapping[str, Any]) -> Sequence[Tensor]:
    """Advance the momentum; return the directions to orthogonalize. Gradients stay as they are."""
    for item in stack:
        if "momentum_buffer" not in item.state:
            item.state["momentum_buffer"] = _zeros_like(item.parameter)
    buffers = [item.state["momentum_buffer"] for item in stack]
    gradients = _gradients(stack)
    if group["maximize"]:
        gradients = list(torch._foreach_neg(gradients))
    momentum = float(group["momentum"])
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    if not group["nesterov"]:
        return buffers
    return torch._foreach_add(gradients, buffers, alpha=momentum)


def _orthogonalize(directions: Tensor, parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """(k, m, n), m <= n -> (k, m, n)."""
    if group["outlier_quantile"] is not None:
        directions = clip_outliers(directions, group["outlier_quantile"])
    steps = group["ns_steps"]
    triples = lookup(directions.shape[-2:], group["coefficients"], steps).triples
    dtype = iteration_dtype(group["ns_dtype"], parameter)
    return newton_schulz(directions, triples, dtype=dtype)


def _apply_(parameter: Tensor, update: Tensor, group: Mapping[str, Any]) -> None:
    """W <- (1 - lr wd) W - lr scale U, rounded once."""
    rows, columns = matrix_shape(parameter)
    if rows > columns:
        update = update.mT
    update = scatter_like(update.reshape(parameter.shape), parameter)
    lr = group["lr"]
    shrink = 1.0 - lr * group["weight_decay"]
    rate = lr * update_scale(rows, columns, group["adjust_lr_fn"])
    value = parameter.to(update.dtype)  # the parameter itself, unless it is of low precision
    value.mul_(shrink)
    if isinstance(rate, Tensor):
        value.sub_(update * rate)
    else:
        value.add_(update, alpha=-rate)
    if value is not parameter:
        parameter.copy_(value)


def _adamw_(items: Sequence[Item], parameters: list[Tensor], group: Mapping[str, Any]) -> None:
    for item in items:
        if "exp_avg" not in item.state:
            item.state["step"] = _step_counter(item.parameter, group)
            item.state["exp_avg"] = _zeros_like(item.parameter)
            item.state["exp_avg_sq"] = _zeros_like(item.parameter)
    beta1, beta2 = group["betas"]
    adamw(
        parameters,
        _gradients(items),
        [item.state["exp_avg"] for item in items],
        [item.state["exp_avg_sq"] for item in items],
        [],
        [item.state["step"] for item in items],
        foreach=group["foreach"],
        fused=group["fused"],
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _step_counter(parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    """On the host, as torch keeps it, unless the fused kernel reads it on the device."""
    device = parameter.device if group["fused"] else torch.device("cpu")
    return torch.zeros((), dtype=torch.float32, device=device)


def _gradients(items: Sequence[Item]) -> list[Tensor]:
    return [item.gradient.to(_state_dtype(item.parameter)) for item in items]


def _zeros_like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(
        parameter, dtype=_state_dtype(parameter), memory_format=torch.preserve_format
    )


def _state_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _as_wide(direction: Tensor) -> Tensor:
    """Flatten to a matrix and transpose a tall one."""
    matrix = direction.reshape(matrix_shape(direction))
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
