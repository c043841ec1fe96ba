"""Norms of many tensors by as few operations as devices and dtypes allow."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> list[Tensor]:
    """The norm of each, in its dtype and on its device.

    Args:
        tensors: Any shapes; with entries where `order` is infinite.
        order: Of the norm; `math.inf` for the largest magnitude.
    """
    found = list(tensors)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        kinds[tensor.device, tensor.dtype].append(number)
    for numbers in kinds.values():
        alike = torch._foreach_norm([tensors[number] for number in numbers], order)
        for number, norm in zip(numbers, alike, strict=True):
            found[number] = norm
    return found
