"""Parameters that are matrices no longer: FSDP1 and ZeRO lay many into one vector and cut that.

The momentum of a piece of a vector cannot be orthogonalized, and who holds the other pieces is
known to them alone. Neither package is imported here; what they leave on parameters tells.
"""

from collections.abc import Iterator

from torch import Tensor, nn

from lightning_root.optim.groups import Groups


def refuse_flattened(groups: Groups, module: nn.Module | None = None) -> None:
    """Check that the parameters are tensors of their own.

    Args:
        groups: The parameter groups.
        module: Whose parameters these are to be, where that is known.

    Raises:
        RuntimeError: If they have been flattened.
    """
    for name, culprit in _found(groups, module):
        raise RuntimeError(
            f"`{name}` has been laid into a flat vector by {culprit}, and pieces of that cannot be "
            "orthogonalized. Train with `ModelParallelStrategy` (FSDP2, see "
            "`configs/fsdp2.yaml`), which cuts weights and state by rows, or with `ddp`"
        )


def _found(groups: Groups, module: nn.Module | None) -> Iterator[tuple[str, str]]:
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
    """Who has flattened a parameter, by the attributes that they give it."""
    # FlatParameter itself; the views of it that `use_orig_params=True` shows.
    if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
        return "FSDP1 (`FullyShardedDataParallel`, Lightning's `FSDPStrategy`)"
    if hasattr(parameter, "ds_id"):
        return "DeepSpeed's ZeRO 3"
    return None
