"""Ways of finding the quantile of a matrix's magnitudes, as data: what is usual, and ours."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_root.functional import outlier_threshold
from lightning_root.kernels.triton.tuning import can_run

Select: TypeAlias = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Selection:
    """One way of doing it.

    Args:
        run: Takes a matrix (m, n) and p in (0, 1]; gives the threshold, no dimensions.
        about: In a few words.
    """

    run: Select
    about: str


def position(size: int, quantile: float) -> float:
    """Where the quantile lies among `size` ordered values, counted from 0."""
    return quantile * (size - 1)


def two_kthvalues(matrix: Tensor, quantile: float) -> Tensor:
    """The two neighbours by `kthvalue`, and the line between them, as the authors' script does."""
    magnitudes = matrix.abs().flatten()
    place = position(magnitudes.numel(), quantile)
    low = magnitudes.kthvalue(int(place) + 1).values
    high = magnitudes.kthvalue(min(int(place) + 2, magnitudes.numel())).values
    return torch.lerp(low, high, place - int(place))


def kthvalue(matrix: Tensor, quantile: float) -> Tensor:
    """The nearest order statistic."""
    magnitudes = matrix.abs().flatten()
    return magnitudes.kthvalue(1 + round(position(magnitudes.numel(), quantile))).values


def torch_quantile(matrix: Tensor, quantile: float) -> Tensor:
    """`torch.quantile`; it refuses more than 2^24 elements."""
    return torch.quantile(matrix.abs().flatten(), quantile)


def by_sort(matrix: Tensor, quantile: float) -> Tensor:
    """All order statistics, and one of them."""
    magnitudes = matrix.abs().flatten().sort().values
    return magnitudes[round(position(magnitudes.numel(), quantile))]


def by_topk(matrix: Tensor, quantile: float) -> Tensor:
    """The least of the largest."""
    magnitudes = matrix.abs().flatten()
    size = magnitudes.numel()
    return magnitudes.topk(size - round(position(size, quantile)), sorted=False).values.min()


BASELINE = "published"

SELECTIONS: dict[str, Selection] = {
    BASELINE: Selection(two_kthvalues, "`kthvalue` twice and a line between, the authors' script"),
    "kthvalue": Selection(kthvalue, "`kthvalue` once, nearest order statistic"),
    "torch.quantile": Selection(torch_quantile, "sorts; at most 2^24 elements"),
    "sort": Selection(by_sort, "sorts, nearest order statistic"),
    "topk": Selection(by_topk, "the least of the largest tenth"),
    "outlier_threshold": Selection(
        outlier_threshold, "this project, `functional.outlier_threshold`: exact"
    ),
    "sampled": Selection(
        partial(outlier_threshold, mode="sampled"),
        'this project, `mode="sampled"`: of 65536 entries, the default on accelerators',
    ),
}
"""What is measured; a new one is one line."""


def sampled_by_kernel(matrix: Tensor, quantile: float) -> Tensor:
    """The same order statistic of the same sample without sorting, by Triton."""
    from lightning_root.kernels.triton.passes import sampled_threshold

    return sampled_threshold(matrix.unsqueeze(0), quantile)[0]


ON_GPUS: dict[str, Selection] = {
    "sampled, kernel": Selection(
        sampled_by_kernel, "the same by Triton, bits counted in place of a sort"
    ),
}
"""What is measured beside them on a GPU with Triton."""


def selections_for(device: torch.device) -> dict[str, Selection]:
    """All that run on a device."""
    return SELECTIONS | ON_GPUS if device.type == "cuda" and can_run(device) else SELECTIONS
