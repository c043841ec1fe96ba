"""Which gradients may be used: dense, real, and finite on all ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_root.distributed import all_ranks_agree, is_sharded


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
