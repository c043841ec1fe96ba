"""AdamW, for everything that is not a hidden matrix: torch's own, with state in float32."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.adamw import adamw

from lightning_root.optim.items import Item, State, state_dtype, step_counter, zeros_like


def adamw_update_(items: Sequence[Item], group: Mapping[str, Any]) -> None:
    """One AdamW step, in place, by `torch.optim.adamw.adamw`.

    With `capturable` each parameter for itself, by torch's fused kernel, which reads on the device
    whether the gradient may be used.

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
            item.state.update(fresh_averages(item.parameter, group))
    if not group["capturable"]:
        _by_torch_(items, parameters, group, None)
        return
    for item, parameter in zip(items, parameters, strict=True):
        item.state["step"] = item.state["step"].to(parameter.device)  # of a state from a host
        _by_torch_([item], [parameter], group, item.finite)


def _by_torch_(
    items: Sequence[Item],
    parameters: list[Tensor],
    group: Mapping[str, Any],
    finite: Tensor | None,
) -> None:
    beta1, beta2 = group["betas"]
    adamw(
        parameters,
        [item.gradient.to(state_dtype(item.parameter)) for item in items],
        [item.state["exp_avg"] for item in items],
        [item.state["exp_avg_sq"] for item in items],
        [],
        [item.state["step"] for item in items],
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


def fresh_averages(parameter: Tensor, group: Mapping[str, Any]) -> State:
    """The state of a parameter that has not been updated yet."""
    return {
        "step": step_counter(parameter, group),
        "exp_avg": zeros_like(parameter),
        "exp_avg_sq": zeros_like(parameter),
    }
