"""Steps that a CUDA graph can hold: nothing in them asks the host for a number on the device."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_root.distributed import is_sharded
from lightning_root.optim.groups import Groups
from lightning_root.optim.norms import norms


class SkipCounts:
    """How often each parameter was left alone, counted where the gradients are."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], Tensor] = {}

    def add(self, names: Sequence[str], finite: Tensor) -> None:
        """Count those whose gradient is not finite.

        Args:
            names: Of parameters.
            finite: Shape (number of names,), bool.
        """
        key = tuple(names)
        if key not in self._counts:
            self._counts[key] = torch.zeros_like(finite, dtype=torch.int32)
        self._counts[key].add_(finite.logical_not())

    def read(self) -> Counter[str]:
        """The counts by name, as they are on the device now: this waits for it."""
        total: Counter[str] = Counter()
        for names, counts in self._counts.items():
            total.update({n: c for n, c in zip(names, counts.tolist(), strict=True) if c})
        return total


def finite_flags(gradients: Sequence[Tensor], headroom: float) -> Tensor:
    """Whether each gradient is finite, on the device.

    Args:
        gradients: Any shapes and dtypes, with entries.
        headroom: As in `guard.usable`, to which this is equal.

    Returns:
        Shape (number of gradients,), bool.
    """
    device = gradients[0].device
    largest = [norm.to(device, torch.float32) for norm in norms(gradients, math.inf)]
    return torch.isfinite(torch.stack(largest) * headroom)


def check_capturable(groups: Groups, shared: bool) -> None:
    """Check, at the first step, that groups with `capturable` can be captured.

    Args:
        groups: The parameter groups.
        shared: Whether ranks share the work.

    Raises:
        ValueError: If parameters are sharded, ranks share the work, or a tensor `lr` is elsewhere.
    """
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
    """Check, while a CUDA graph is captured, that it can hold this step.

    Args:
        groups: The parameter groups.
        warm: Whether there was a step before.

    Raises:
        RuntimeError: If it cannot.
    """
    if not torch.cuda.is_available() or not torch.cuda.is_current_stream_capturing():
        return
    if not all(group["capturable"] for group in groups):
        raise RuntimeError("a CUDA graph can hold ROOT's step only with `capturable=True`")
    if not warm:
        raise RuntimeError(
            "ROOT makes its state and measures its kernels in the first step; take one before "
            "a CUDA graph is captured"
        )
