"""Which gradients may be used: their layout, whether they are finite, and who was left alone."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_root.distributed.collectives import all_ranks_agree, is_sharded, local_part
from lightning_root.optim.blocks import BoundParameter, GroupPlan
from lightning_root.optim.stages.momentum import momentum_of


class SkipCounts:
    """Counts of the steps in which each parameter was left alone, kept where gradients are."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], Tensor] = {}

    def add(self, names: Sequence[str], finite: Tensor) -> None:
        """Count the names whose flag, (names,), is False."""
        key = tuple(names)
        if key not in self._counts:
            self._counts[key] = torch.zeros_like(finite, dtype=torch.int32)
        self._counts[key].add_(finite.logical_not())

    def read(self) -> Counter[str]:
        """Return the counts by name, as they are on the device now: this waits for it."""
        total: Counter[str] = Counter()
        for names, counts in self._counts.items():
            total.update({n: c for n, c in zip(names, counts.tolist(), strict=True) if c})
        return total


def take_gradients(
    plans: Sequence[GroupPlan], state_of: Callable[[Tensor], dict[str, Any]], counts: SkipCounts
) -> list[str]:
    """Set what is live in each plan; return the names whose gradient is not finite, or raise."""
    # Groups with `capturable` are judged on the device: all of their parameters are live, with a
    # flag each, and `counts` counts. Sparse gradients are refused before any change.
    on_host: list[BoundParameter] = []
    headroom: list[float] = []
    for plan in plans:
        plan.live = []
        of_plan = _headroom(plan)
        for bound in plan.parameters:
            gradient = bound.parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided and not is_sharded(gradient):
                raise TypeError(
                    f"the gradient of `{bound.name}` is sparse ({gradient.layout}), which ROOT "
                    "does not support; use `sparse=False` in the embedding"
                )
            bound.gradient = gradient
            plan.live.append(bound)
        if not plan.group["capturable"]:
            on_host += plan.live
            headroom += [of_plan] * len(plan.live)
    sharded = any([bound.is_sharded for bound in on_host])
    flags = usable([bound.gradient for bound in on_host], headroom, sharded)
    skipped: list[str] = []
    if not all(flags):
        refused = {id(b) for b, flag in zip(on_host, flags, strict=True) if not flag}
        skipped = [bound.name for bound in on_host if id(bound) in refused]
        for plan in plans:
            plan.live = [bound for bound in plan.live if id(bound) not in refused]
    for plan in plans:
        plan.live = [bound for bound in plan.live if bound.parameter.numel()]
        if plan.group["capturable"] and plan.live:
            gradients = [bound.gradient for bound in plan.live]
            finite = finite_flags(gradients, _headroom(plan))
            counts.add([bound.name for bound in plan.live], finite)
            for bound, flag in zip(plan.live, finite.unbind(), strict=True):
                bound.finite = flag
        for bound in plan.live:
            bound.state = state_of(bound.parameter)
    return skipped


def release_gradients(plans: Sequence[GroupPlan]) -> None:
    """Forget gradients and state, so that they can be freed before the next step."""
    for plan in plans:
        for bound in plan.parameters:
            bound.gradient, bound.state, bound.finite = bound.parameter, {}, None
        plan.live = []


def _headroom(plan: GroupPlan) -> float:
    """Momentum and its look-ahead may grow to 1 / (1 - mu) times the gradient; AdamW squares it."""
    if plan.role == "root":
        return 2.0 / (1.0 - momentum_of(plan.group))
    return math.sqrt(torch.finfo(torch.float32).max)


def usable(
    gradients: Sequence[Tensor], headroom: Sequence[float], sharded: bool = False
) -> list[bool]:
    """Return whether each gradient is finite in float32, also if state grows it by its headroom."""
    # One host synchronisation looks at all: where a norm is finite, so are its entries. It may
    # overflow although no entry does, so the others are looked at again, with one more. DTensors
    # are judged by all their ranks.
    if not gradients:
        return []
    local = [local_part(gradient) for gradient in gradients] if sharded else list(gradients)
    if any([gradient.is_complex() for gradient in local]):
        local = [torch.view_as_real(g) if g.is_complex() else g for g in local]
    flags = _fit_float32(norms(local), headroom).tolist()
    doubtful = [number for number, flag in enumerate(flags) if not flag]
    if doubtful:
        largest = [_largest(local[number]) for number in doubtful]
        found = _fit_float32(largest, [headroom[number] for number in doubtful]).tolist()
        for number, flag in zip(doubtful, found, strict=True):
            flags[number] = flag
    if sharded:
        device = local[0].device
        flags = all_ranks_agree(torch.tensor(flags, device=device), gradients).tolist()
    return [bool(flag) for flag in flags]


def finite_flags(gradients: Sequence[Tensor], headroom: float) -> Tensor:  # (gradients,), bool
    """Return on the device what `usable` says, of gradients with entries."""
    device = gradients[0].device
    largest = [norm.to(device, torch.float32) for norm in norms(gradients, math.inf)]
    return torch.isfinite(torch.stack(largest) * headroom)


def _fit_float32(values: Sequence[Tensor], headroom: Sequence[float]) -> Tensor:
    """Return whether each value times its factor is finite in float32, on one device."""
    device = values[0].device
    stacked = torch.stack([value.to(device, torch.float32) for value in values])
    factors = torch.tensor(headroom, dtype=torch.float32).to(device, non_blocking=True)
    return torch.isfinite(stacked * factors)


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest magnitude; NaN and infinity come through."""
    low, high = torch.aminmax(tensor)
    return torch.maximum(-low, high)


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> list[Tensor]:
    """Return the norm of each, in its dtype and on its device, by as few operations as possible."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        kinds[tensor.device, tensor.dtype].append(number)
    found = list(tensors)
    for numbers in kinds.values():
        alike = torch._foreach_norm([tensors[number] for number in numbers], order)
        for number, norm in zip(numbers, alike, strict=True):
            found[number] = norm
    return found
