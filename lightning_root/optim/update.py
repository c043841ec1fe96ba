"""The two update rules, as functions of lists of tensors.

`root_update_` is ROOT's (arXiv:2511.20626, Algorithm 2, with the Nesterov look-ahead of the
authors' script as an option), for matrices; `adamw_update_` is torch's AdamW for everything else.
Both keep their state and do their arithmetic in float32 or better and round once, into the
parameter.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_root.coefficients import Coefficients, lookup
from lightning_root.distributed import gather, scatter_like
from lightning_root.functional import clip_outliers, newton_schulz, update_scale
from lightning_root.optim.options import iteration_dtype
from lightning_root.partition import MatrixView

State: TypeAlias = dict[str, Any]

STACK_ELEMENTS = 1 << 25
"""At most this many elements (128 MiB of float32) are orthogonalized at a time."""


@dataclass(frozen=True, slots=True)
class Item:
    """One parameter with a gradient, and its state."""

    name: str
    parameter: Tensor
    gradient: Tensor
    state: State
    view: MatrixView


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of one size in the middle of a step, as hooks see them; not to be modified.

    Every tensor has the shape (k, m, n) with m <= n: what is taller than wide lies transposed.

    Args:
        names: Parameter and number of the matrix within it, for each of the k.
        momentum: N, the momentum after the look-ahead.
        clipped: B, what is orthogonalized: N held within its outlier threshold.
        update: U, orthogonalized, before the scale.
        scales: Factor on the learning rate, for each of the k.
        coefficients: What it was orthogonalized with.
        group: The options of the parameter group.
    """

    names: tuple[tuple[str, int], ...]
    momentum: Tensor
    clipped: Tensor
    update: Tensor
    scales: tuple[float, ...]
    coefficients: Coefficients
    group: Mapping[str, Any]


StackHook: TypeAlias = Callable[[Stack], None]


def root_update_(
    items: Sequence[Item], group: Mapping[str, Any], hooks: Sequence[StackHook] = ()
) -> None:
    """One ROOT step of matrices, in place.

    M <- mu M + G; N <- G + mu M (Nesterov) or M; B <- clamp(N, -eps, eps); U <- orthogonalize(B);
    W <- (1 - lr wd) W - lr scale U.

    Args:
        items: Parameters of two or more dimensions, and how each is cut into matrices.
        group: The options of their parameter group.
        hooks: Called with every stack of matrices once it is orthogonalized.
    """
    for portion in _portions(items):
        directions = [gather(direction) for direction in _momentum_(portion, group)]
        updates = _updates(portion, directions, group, hooks)
        for item, update in zip(portion, updates, strict=True):
            _apply_(item.parameter, scatter_like(update, item.parameter), group)


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


def _portions(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Consecutive items of bounded size, at least one at a time."""
    portion: list[Item] = []
    elements = 0
    for item in items:
        size = item.parameter.numel()
        if portion and elements + size > STACK_ELEMENTS:
            yield portion
            portion, elements = [], 0
        portion.append(item)
        elements += size
    if portion:
        yield portion


def _momentum_(items: Sequence[Item], group: Mapping[str, Any]) -> Sequence[Tensor]:
    """Advance the momentum; return the directions to orthogonalize. Gradients stay as they are."""
    for item in items:
        if "momentum_buffer" not in item.state:
            item.state["momentum_buffer"] = _zeros_like(item.parameter)
    buffers = [item.state["momentum_buffer"] for item in items]
    gradients = _gradients(items)
    if group["maximize"]:
        gradients = list(torch._foreach_neg(gradients))
    momentum = float(group["momentum"])
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    if not group["nesterov"]:
        return buffers
    return torch._foreach_add(gradients, buffers, alpha=momentum)


@dataclass(frozen=True, slots=True)
class _Block:
    """One matrix of a parameter: where it is read, where its update goes."""

    name: tuple[str, int]
    source: Tensor
    target: Tensor
    scale: float


def _updates(
    items: Sequence[Item],
    directions: Sequence[Tensor],
    group: Mapping[str, Any],
    hooks: Sequence[StackHook],
) -> list[Tensor]:
    """One update per item, shaped like its parameter: scale * U for each of its matrices.

    Matrices of equal size, whatever parameter they are cut from and however they lie, are
    orthogonalized together.
    """
    updates = [torch.empty(d.shape, dtype=d.dtype, device=d.device) for d in directions]
    stacks: dict[tuple[object, ...], list[_Block]] = defaultdict(list)
    for item, direction, update in zip(items, directions, updates, strict=True):
        for block in _blocks(item, direction, update, group):
            source = block.source
            stacks[(*source.shape, source.dtype, source.device)].append(block)
    for blocks in stacks.values():
        for block, result in zip(blocks, _orthogonalize(blocks, group, hooks), strict=True):
            torch.mul(result, block.scale, out=block.target)
    return updates


def _blocks(
    item: Item, direction: Tensor, update: Tensor, group: Mapping[str, Any]
) -> Iterator[_Block]:
    """The matrices of one parameter, laid wide."""
    pairs = zip(item.view.cut(direction), item.view.cut(update), strict=True)
    for number, (source, target) in enumerate(pairs):
        rows, columns = source.shape[::-1] if item.view.transposed else source.shape
        scale = update_scale(rows, columns, group["adjust_lr_fn"])
        if source.shape[0] > source.shape[1]:
            source, target = source.mT, target.mT
        yield _Block((item.name, number), source, target, scale)


def _orthogonalize(
    blocks: Sequence[_Block], group: Mapping[str, Any], hooks: Sequence[StackHook]
) -> Tensor:
    """Orthogonalize k matrices of one size: (k, m, n), m <= n."""
    momentum = torch.stack([block.source for block in blocks])
    clipped = momentum
    if group["outlier_quantile"] is not None:
        clipped = clip_outliers(momentum, group["outlier_quantile"])
    coefficients = lookup(momentum.shape[-2:], group["coefficients"], group["ns_steps"])
    dtype = iteration_dtype(group["ns_dtype"], momentum)
    update = newton_schulz(clipped, coefficients.triples, dtype=dtype)
    for hook in hooks:
        names = tuple(block.name for block in blocks)
        scales = tuple(block.scale for block in blocks)
        hook(Stack(names, momentum, clipped, update, scales, coefficients, group))
    return update


def _apply_(parameter: Tensor, update: Tensor, group: Mapping[str, Any]) -> None:
    """W <- (1 - lr wd) W - lr update, rounded once."""
    lr = group["lr"]
    value = parameter.to(update.dtype)  # the parameter itself, unless it is of low precision
    value.mul_(1.0 - lr * group["weight_decay"])
    if isinstance(lr, Tensor):
        value.sub_(update * lr)
    else:
        value.add_(update, alpha=-lr)
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
