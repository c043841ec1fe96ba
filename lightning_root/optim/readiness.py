"""Checks before the first step after parameters were bound, and before a capture."""

import warnings
from collections.abc import Iterator

from torch import Tensor, nn

from lightning_root.distributed import reshard
from lightning_root.distributed.collectives import is_sharded
from lightning_root.optim.groups import Groups, members, stale_names
from lightning_root.partition.names import canonical
from lightning_root.partition.parameters import canonical_parameters


def check_bound(groups: Groups, module: nn.Module | None, added: Groups = ()) -> None:
    """Raise RuntimeError if there are no parameters, or they are no longer the module's."""
    # `added` are those of the groups that may also hold parameters of something else, a loss.
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
                stacklevel=8,
            )
        return
    reshard(module)
    stale = stale_names(groups, module)
    if stale and added:
        own = {name for name, _ in canonical_parameters(module)}
        others = {name for name in stale_names(added, module) if canonical(name) not in own}
        stale = [name for name in stale if name not in others]
    if stale:
        raise RuntimeError(
            f"{len(stale)} of ROOT's parameters are no longer the model's (first: {stale[:3]}): "
            "they were replaced after the optimizer was created, so a step would train nothing. "
            "Call `optimizer.bind(model)` once the model is complete, use `ROOTMixin` or "
            "`ROOTCLI`, or add the callback `lightning_root.ROOTBinder` to the Trainer"
        )


def refuse_flattened(groups: Groups, module: nn.Module | None = None) -> None:
    """Raise RuntimeError if parameters are matrices no longer."""
    # FSDP1 and ZeRO lay many into one vector and cut that. The momentum of a piece of a vector
    # cannot be orthogonalized, and who holds the other pieces is known to them alone. Neither
    # package is imported here; what they leave on parameters tells.
    for name, culprit in _flattened(groups, module):
        raise RuntimeError(
            f"`{name}` has been laid into a flat vector by {culprit}, and pieces of that cannot be "
            "orthogonalized. Train with `ModelParallelStrategy` (FSDP2, see "
            "`configs/fsdp2.yaml`), which cuts weights and state by rows, or with `ddp`"
        )


def _flattened(groups: Groups, module: nn.Module | None) -> Iterator[tuple[str, str]]:
    if module is not None:
        for name, parameter in module.named_parameters():
            if culprit := _culprit(parameter):
                yield name, culprit
    for group in groups:
        parameters, names = group["params"], group.get("param_names", ())
        for number, parameter in enumerate(parameters):
            name = names[number] if number < len(names) else f"parameter {number}"
            if culprit := _culprit(parameter):
                yield name, culprit
            elif group["role"] == "root" and parameter.ndim < 2:  # it was a matrix when it came
                yield name, "another library, as DeepSpeed's ZeRO does it"
        if len(names) != len(parameters):  # ZeRO puts one vector in the place of a whole group
            yield group["name"], "another library, as DeepSpeed's ZeRO does it"


def _culprit(parameter: Tensor) -> str | None:
    """Return who has flattened a parameter, by the attributes that they give it."""
    # FlatParameter itself; the views of it that `use_orig_params=True` shows.
    if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
        return "FSDP1 (`FullyShardedDataParallel`, Lightning's `FSDPStrategy`)"
    if hasattr(parameter, "ds_id"):
        return "DeepSpeed's ZeRO 3"
    return None


def check_capturable(groups: Groups, shared: bool) -> None:
    """Raise ValueError if groups with `capturable` cannot be captured; ranks may share the work."""
    for group in groups:
        if not group["capturable"]:
            continue
        if shared or any(is_sharded(parameter) for parameter in group["params"]):
            raise ValueError(
                "`capturable=True` works where each rank has whole parameters and updates all of "
                "them itself; pass `share_updates=False` under DDP, and leave it out under FSDP"
            )
        lr, devices = group["lr"], {parameter.device for parameter in group["params"]}
        if isinstance(lr, Tensor) and devices and devices != {lr.device}:
            raise ValueError(
                f"a tensor `lr` must be on the parameters' device when `capturable=True`, got "
                f"{str(lr.device)!r}; pass lr.to({str(next(iter(devices)))!r})"
            )


def check_capturing(groups: Groups, warm: bool) -> None:
    """Raise RuntimeError if the CUDA graph that is captured cannot hold this step."""
    if not all(group["capturable"] for group in groups):
        raise RuntimeError("a CUDA graph can hold ROOT's step only with `capturable=True`")
    if not warm:
        raise RuntimeError(
            "ROOT makes its state and measures its kernels in the first step; take one before "
            "a CUDA graph is captured"
        )
