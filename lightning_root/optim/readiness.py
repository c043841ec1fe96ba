"""Checks before the first step after parameters were bound, and before a capture."""

import warnings
from collections.abc import Container, Iterator, Mapping

from torch import Tensor, nn

from lightning_root.distributed import reshard
from lightning_root.distributed.collectives import is_sharded
from lightning_root.optim.groups import Groups, Members, stale
from lightning_root.partition import Route


def check_bound(
    present: Members, module: nn.Module | None, foreign: Container[Tensor] = ()
) -> None:
    """Raise RuntimeError if there are no parameters, or they are no longer the module's.

    Those that never were, a loss's for example, are `foreign`.
    """
    if not present:
        raise RuntimeError(
            "ROOT has no parameters: it was created empty and never bound. Call "
            "`optimizer.bind(model)`, use `ROOTMixin` or `ROOTCLI`, or add the callback "
            "`lightning_root.ROOTBinder` to the Trainer"
        )
    if module is None:
        if all(member.parameter.grad is None for member in present):
            warnings.warn(
                "no parameter of ROOT has a gradient on its first step; if the model was wrapped "
                "or rebuilt after the optimizer was created, call `optimizer.bind(model)`",
                stacklevel=8,
            )
        return
    reshard(module)
    own = (member.parameter for member in present if member.parameter not in foreign)
    lost = {id(parameter) for parameter in stale(own, module)}
    replaced = [member.name for member in present if id(member.parameter) in lost]
    if replaced:
        raise RuntimeError(
            f"{len(replaced)} of ROOT's parameters are no longer the model's (first: "
            f"{replaced[:3]}): they were replaced after the optimizer was created, so a step would "
            "train nothing. Call `optimizer.bind(model)` once the model is complete, use "
            "`ROOTMixin` or `ROOTCLI`, or add the callback `lightning_root.ROOTBinder` to the "
            "Trainer"
        )


def refuse_flattened(
    groups: Groups, known: Mapping[Tensor, Route], module: nn.Module | None = None
) -> None:
    """Raise RuntimeError if parameters are matrices no longer."""
    # FSDP1 and ZeRO lay many into one vector and cut that. The momentum of a piece of a vector
    # cannot be orthogonalized, and who holds the other pieces is known to them alone. Neither
    # package is imported here; what they leave on parameters tells.
    for name, culprit in _flattened(groups, known, module):
        raise RuntimeError(
            f"`{name}` has been laid into a flat vector by {culprit}, and pieces of that cannot be "
            "orthogonalized. Train with `ModelParallelStrategy` (FSDP2, see "
            "`configs/fsdp2.yaml`), which cuts weights and state by rows, or with `ddp`"
        )


def _flattened(
    groups: Groups, known: Mapping[Tensor, Route], module: nn.Module | None
) -> Iterator[tuple[str, str]]:
    if module is not None:
        for name, parameter in module.named_parameters():
            if culprit := _culprit(parameter):
                yield name, culprit
    dims = {route.name: len(route.shape) for route in known.values()}
    for place, group in enumerate(groups):
        parameters, names = group["params"], group.get("param_names", ())
        for number, parameter in enumerate(parameters):
            name = names[number] if number < len(names) else f"parameter {number}"
            if culprit := _culprit(parameter):
                yield name, culprit
            elif parameter in known and parameter.ndim < 2 <= len(known[parameter].shape):
                yield name, "another library, as DeepSpeed's ZeRO does it"
        # ZeRO puts one vector in the place of a whole group. What the user leaves in is known.
        unknown = [parameter for parameter in parameters if parameter not in known]
        pairs = zip(names, parameters, strict=False)
        flat = len(names) != len(parameters) or any(p.ndim < 2 <= dims.get(n, 0) for n, p in pairs)
        if unknown and flat and all(parameter.ndim < 2 for parameter in unknown):
            yield f"param_groups[{place}]", "another library, as DeepSpeed's ZeRO does it"


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


def check_fused(present: Members) -> None:
    """Raise ValueError for what torch's fused AdamW cannot update, before anything has moved."""
    for group, parameter, route in present:
        fused = group["fused"] or group["capturable"]
        if fused and route.role == "adamw" and parameter.is_complex():
            raise ValueError(
                f"`fused=True` and `capturable=True` need real parameters, got `{route.name}` of "
                f"{parameter.dtype}; leave them out in its group"
            )


def check_clip(present: Members) -> None:
    """Raise ValueError for sharded parameters whose gradients are to be clipped entry by entry."""
    for group, parameter, route in present:
        limit = group["gradient_clip_entries"]
        if limit is not None and route.role == "root" and is_sharded(parameter):
            raise ValueError(
                f"`gradient_clip_entries` must be None for `{route.name}`, which is sharded (a "
                f"DTensor): no rank has whole rows and columns, got {limit}; use "
                '`outlier_quantile="auto"` there'
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
