"""AdamW, for everything that is not a hidden matrix: torch's own, with state in float32."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_root.optim.items import Item, state_dtype, zeros_like


def adamw_update_(items: Sequence[Item], group: Mapping[str, Any]) -> None:
    """One AdamW step, in place, by `torch.optim.adamw.adamw`.

    Args:
        items: Parameters of any shape.
        group: The options of their parameter group.
    """
    exact = [item for item in items if state_dtype(item.parameter) == item.parameter.dtype]
    rounded = [item for item in items if state_dtype(item.parameter) != item.parameter.dtype]
    if exact:
        _adamw_(exact, [item.parameter for item in exact], group)
    if rounded:
        wide = [item.parameter.to(state_dtype(item.parameter)) for item in rounded]
        _adamw_(rounded, wide, group)
        for item, value in zip(rounded, wide, strict=True):
            item.parameter.copy_(value)


def _adamw_(items: Sequence[Item], parameters: list[Tensor], group: Mapping[str, Any]) -> None:
    for item in items:
        if "exp_avg" not in item.state:
            item.state["step"] = _step_counter(item.parameter, group)
            item.state["exp_avg"] = zeros_like(item.parameter)
            item.state["exp_avg_sq"] = zeros_like(item.parameter)
    beta1, beta2 = group["betas"]
    adamw(
        parameters,
        [item.gradient.to(state_dtype(item.parameter)) for item in items],
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
