"""AdamW, for everything that is not a hidden matrix: torch's own, with state in float32.

    m <- b1 m + (1 - b1) G        v <- b2 v + (1 - b2) G^2
    W <- (1 - lr weight_decay) W - lr m^ / (sqrt(v^) + eps)     cautious decay: as in `apply`

State: the number of steps and both averages. Source: I. Loshchilov, F. Hutter, arXiv:1711.05101.
The plain twin is `torch.optim.AdamW`.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lightning_root.optim.blocks import BoundParameter, Group, Rates, StateSpec, state_dtype

STATE: Final = (
    StateSpec("step", "counter", lambda *_: torch.float32, "adamw"),
    StateSpec("exp_avg", "entries", lambda p, _: state_dtype(p), "adamw"),
    StateSpec("exp_avg_sq", "entries", lambda p, _: state_dtype(p), "adamw"),
)


def adamw_update_(parameters: Sequence[BoundParameter], group: Group) -> None:
    """Take one step in place; with `capturable` each parameter by torch's fused kernel alone."""
    alike: dict[tuple[Rates | None, bool], list[BoundParameter]] = {}
    for bound in parameters:
        low = bound.parameter.dtype in (torch.bfloat16, torch.float16)
        alike.setdefault((bound.rates, low), []).append(bound)
    for (rates, low), own in alike.items():
        options = group if rates is None else rates.of(group)
        values = [bound.parameter.to(torch.float32) if low else bound.parameter for bound in own]
        _adamw_(own, values, options)
        for bound, value in zip(own, values, strict=True) if low else ():
            bound.parameter.copy_(value)


def _adamw_(parameters: Sequence[BoundParameter], values: list[Tensor], group: Group) -> None:
    if group["weight_decay_mode"] == "cautious" and group["weight_decay"]:
        before = [value.clone() for value in values]
        _adamw_(parameters, values, {**group, "weight_decay": 0.0})
        for value, old in zip(values, before, strict=True):
            decaying = (old - value).sign().mul_(old.sign()).clamp_(min=0.0)
            value.addcmul_(old, decaying.mul_(group["lr"] * group["weight_decay"]), value=-1.0)
        return
    if not group["capturable"]:
        _by_torch_(parameters, values, group, None)
        return
    for bound, value in zip(parameters, values, strict=True):
        bound.state["step"] = bound.state["step"].to(value.device)  # of a state from a host
        _by_torch_([bound], [value], group, bound.finite)


def _by_torch_(
    parameters: Sequence[BoundParameter], values: list[Tensor], group: Group, finite: Tensor | None
) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        values,
        [bound.gradient.to(value.dtype) for bound, value in zip(parameters, values, strict=True)],
        [bound.state["exp_avg"] for bound in parameters],
        [bound.state["exp_avg_sq"] for bound in parameters],
        [],
        [bound.state["step"] for bound in parameters],
        foreach=group["foreach"],
        fused=group["fused"] or group["capturable"],
        found_inf=None if finite is None else finite.logical_not().float(),
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )
