"""What is looked at before a step: live parameters, and gradients that may be used."""

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_root.distributed import all_ranks_agree, is_sharded, local_part, reshard
from lightning_root.optim.capture import SkipCounts, finite_flags
from lightning_root.optim.flattened import refuse_flattened
from lightning_root.optim.groups import Group, Groups, members, stale_names
from lightning_root.optim.items import Item
from lightning_root.optim.norms import norms
from lightning_root.partition import MatrixView
from lightning_root.partition.names import canonical

WHOLE = MatrixView()


def check_bound(groups: Groups, module: nn.Module | None, added: Groups = ()) -> None:
    """Check, at the first step, that there are parameters and that they are the module's.

    Args:
        groups: The parameter groups.
        module: Whose parameters these are, where that is known.
        added: Those of the groups that may also hold parameters of something else, a loss.

    Raises:
        RuntimeError: If there are none, or a bound one is no longer the module's or has been
            flattened.
    """
    refuse_flattened(groups)
    if not any(group["params"] for group in groups):
        raise RuntimeError(
            "ROOT has no parameters: it was created empty and never bound. Call "
            "`optimizer.bind(model)`, use `ROOTMixin` or `ROOTCLI`, or add the callback "
            "`lightning_root.ROOTBinder` to the Trainer"
        )
    if module is None:
        if all(parameter.grad is None for _, _, parameter in members(groups)):
            warnings.warn(
                "no parameter of ROOT has a gradient on its first step; if the model was wrapped "
                "or rebuilt after the optimizer was created, call `optimizer.bind(model)`",
                stacklevel=7,
            )
        return
    reshard(module)
    stale = stale_names(groups, module)
    if stale and added:
        own = {canonical(name) for name, _ in module.named_parameters()}
        others = {name for name in stale_names(added, module) if canonical(name) not in own}
        stale = [name for name in stale if name not in others]
    if stale:
        raise RuntimeError(
            f"{len(stale)} of ROOT's parameters are no longer the model's (first: {stale[:3]}): "
            "they were replaced after the optimizer was created, so a step would train nothing. "
            "Call `optimizer.bind(model)` once the model is complete, use `ROOTMixin` or "
            "`ROOTCLI`, or add the callback `lightning_root.ROOTBinder` to the Trainer"
        )


def collect(
    groups: Groups,
    state: defaultdict[Tensor, Any],
    views: Mapping[str, MatrixView],
    counts: SkipCounts,
) -> list[tuple[Group, list[Item], list[str]]]:
    """Per group, what to update, and the names of parameters whose gradient is not finite.

    Args:
        groups: The parameter groups.
        state: The optimizer's state.
        views: How parameters are cut into matrices, by name; the others are taken whole.
        counts: Where groups with `capturable` count what is not finite. All their parameters are
            to be updated, by the flags that come with them.

    Raises:
        TypeError: If a gradient is sparse or complex.
    """
    entries = [
        (group, name, parameter, parameter.grad)
        for group, name, parameter in members(groups)
        if parameter.grad is not None
    ]
    for _, name, _, gradient in entries:
        check_layout(name, gradient)
    flags = _flags(entries, counts)
    found: dict[int, tuple[Group, list[Item], list[str]]] = {
        id(group): (group, [], []) for group in groups
    }
    for (group, name, parameter, gradient), finite in zip(entries, flags, strict=True):
        _, items, unusable = found[id(group)]
        on_device = finite if isinstance(finite, Tensor) else None
        if on_device is None and not finite:
            unusable.append(name)
        elif parameter.numel():
            view = views.get(name, WHOLE)
            item = Item(name, parameter, gradient, state[parameter], view, finite=on_device)
            items.append(item)
    return list(found.values())


def _flags(
    entries: Sequence[tuple[Group, str, Tensor, Tensor]], counts: SkipCounts
) -> list[bool | Tensor]:
    """Whether each gradient is finite; a tensor without dimensions in groups with `capturable`."""
    flags: list[bool | Tensor] = [True] * len(entries)
    on_host = [number for number, entry in enumerate(entries) if not entry[0]["capturable"]]
    headroom = [_headroom(entries[number][0]) for number in on_host]
    for number, flag in zip(
        on_host, usable([entries[number][3] for number in on_host], headroom), strict=True
    ):
        flags[number] = flag
    by_group: dict[int, list[int]] = defaultdict(list)
    for number, (group, _, parameter, _) in enumerate(entries):
        if group["capturable"] and parameter.numel():
            by_group[id(group)].append(number)
    for numbers in by_group.values():
        gradients = [entries[number][3] for number in numbers]
        finite = finite_flags(gradients, _headroom(entries[numbers[0]][0]))
        counts.add([entries[number][1] for number in numbers], finite)
        for number, one in zip(numbers, finite.unbind(), strict=True):
            flags[number] = one
    return flags


def _headroom(group: Group) -> float:
    """Momentum and its look-ahead may grow to 1 / (1 - mu) times the gradient; AdamW squares it."""
    if group["role"] == "root":
        return 2.0 / (1.0 - float(group["momentum"]))
    return math.sqrt(torch.finfo(torch.float32).max)


def check_layout(name: str, gradient: Tensor) -> None:
    """Refuse gradients that neither rule can use.

    Raises:
        TypeError: If the gradient is sparse or complex.
    """
    if gradient.layout != torch.strided and not is_sharded(gradient):
        raise TypeError(
            f"the gradient of `{name}` is sparse ({gradient.layout}), which ROOT does not support; "
            "use `sparse=False` in the embedding"
        )
    if gradient.is_complex():
        raise TypeError(
            f"the gradient of `{name}` is complex ({gradient.dtype}), which ROOT does not support; "
            "train its real view (`torch.view_as_real`), or give it another optimizer"
        )


def usable(gradients: Sequence[Tensor], headroom: Sequence[float]) -> list[bool]:
    """Whether each gradient is finite, with one host synchronisation for all of them.

    The norm is the fastest look at all entries: where it is finite, so are they. It may overflow
    although no entry does, so the others are looked at again, with one more synchronisation.

    Args:
        gradients: Any shapes, dtypes, devices; DTensors are judged by all their ranks.
        headroom: Factor by which state may grow beyond the gradient before it overflows; a
            gradient whose multiple overflows float32 counts as not finite.
    """
    if not gradients:
        return []
    local = [local_part(gradient) for gradient in gradients]
    flags = _fit_float32(norms(local), headroom).tolist()
    doubtful = [number for number, flag in enumerate(flags) if not flag]
    if doubtful:
        largest = [_largest(local[number]) for number in doubtful]
        found = _fit_float32(largest, [headroom[number] for number in doubtful]).tolist()
        for number, flag in zip(doubtful, found, strict=True):
            flags[number] = flag
    if any(is_sharded(gradient) for gradient in gradients):
        device = local[0].device
        flags = all_ranks_agree(torch.tensor(flags, device=device), gradients).tolist()
    return [bool(flag) for flag in flags]


def _fit_float32(values: Sequence[Tensor], headroom: Sequence[float]) -> Tensor:
    """Whether each value times its factor is finite in float32; one tensor, on one device."""
    device = values[0].device
    stacked = torch.stack([value.to(device, torch.float32) for value in values])
    factors = torch.tensor(headroom, dtype=torch.float32).to(device, non_blocking=True)
    return torch.isfinite(stacked * factors)


def _largest(tensor: Tensor) -> Tensor:
    """Largest magnitude of some entries; NaN and infinity come through."""
    low, high = torch.aminmax(tensor)
    return torch.maximum(-low, high)
