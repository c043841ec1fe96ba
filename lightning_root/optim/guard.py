"""What is looked at before a step: live parameters, and gradients that may be used."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_root.distributed import all_ranks_agree, is_sharded, reshard
from lightning_root.optim.groups import Group, Groups, members, stale_names
from lightning_root.optim.update import Item
from lightning_root.partition import MatrixView

WHOLE = MatrixView()


def check_bound(groups: Groups, module: nn.Module | None) -> None:
    """Check, at the first step, that there are parameters and that they are the module's.

    Raises:
        RuntimeError: If there are none, or a bound one is no longer the module's.
    """
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
                stacklevel=5,
            )
        return
    reshard(module)
    stale = stale_names(groups, module)
    if stale:
        raise RuntimeError(
            f"{len(stale)} of ROOT's parameters are no longer the model's (first: {stale[:3]}): "
            "they were replaced after the optimizer was created, so a step would train nothing. "
            "Call `optimizer.bind(model)` once the model is complete, use `ROOTMixin` or "
            "`ROOTCLI`, or add the callback `lightning_root.ROOTBinder` to the Trainer"
        )


def collect(
    groups: Groups, state: defaultdict[Tensor, Any], views: Mapping[str, MatrixView]
) -> list[tuple[Group, list[Item], list[str]]]:
    """Per group, what to update, and the names of parameters whose gradient is not finite.

    Args:
        groups: The parameter groups.
        state: The optimizer's state.
        views: How parameters are cut into matrices, by name; the others are taken whole.

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
    # Momentum and its look-ahead may grow to 1 / (1 - mu) times the gradient.
    headroom = [
        2.0 / (1.0 - group["momentum"]) if group["role"] == "root" else 1.0
        for group, _, _, _ in entries
    ]
    flags = usable([gradient for _, _, _, gradient in entries], headroom)
    found: dict[int, tuple[Group, list[Item], list[str]]] = {
        id(group): (group, [], []) for group in groups
    }
    for (group, name, parameter, gradient), finite in zip(entries, flags, strict=True):
        _, items, unusable = found[id(group)]
        if not finite:
            unusable.append(name)
        elif parameter.numel():
            view = views.get(name, WHOLE)
            items.append(Item(name, parameter, gradient, state[parameter], view))
    return list(found.values())


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

    Args:
        gradients: Any shapes, dtypes, devices; DTensors are judged by all their ranks.
        headroom: Factor by which state may grow beyond the gradient before it overflows; a
            gradient whose multiple overflows float32 counts as not finite.
    """
    if not gradients:
        return []
    device = gradients[0].device
    largest = torch.stack([_largest(gradient).to(device) for gradient in gradients])
    factors = torch.tensor(headroom, dtype=largest.dtype).to(device, non_blocking=True)
    flags = torch.isfinite(largest * factors)
    result: list[bool] = all_ranks_agree(flags, gradients).tolist()
    return result


def _largest(gradient: Tensor) -> Tensor:
    """Largest magnitude as float32; NaN and infinity come through. Squares would overflow."""
    local = gradient.to_local() if is_sharded(gradient) else gradient  # type: ignore[attr-defined]
    if local.numel() == 0:
        return torch.zeros((), device=local.device)
    low, high = torch.aminmax(local)
    return torch.maximum(-low, high).to(torch.float32)
