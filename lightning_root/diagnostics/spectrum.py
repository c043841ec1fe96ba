"""Singular values of chosen matrices, captured in the middle of one step."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from lightning_root.coefficients.shapes import Shape as Shape
from lightning_root.diagnostics.statistics import Stack
from lightning_root.optim import ROOT

Matrix: TypeAlias = tuple[str, int]  # name of a parameter, and number of the matrix within it

_WITH_FLOAT64: Final = ("cpu", "cuda")


def singular_values(matrix: Tensor) -> Tensor:  # (m, n), any floating dtype, any device
    """Return the singular values (min(m, n),) of one matrix, ascending, as float64 on the host."""
    # They are the roots of the eigenvalues of the Gram matrix in float64. That is right to 1e-8 of
    # the largest, finer than float32 entries are, and for wide matrices several times cheaper than
    # a decomposition; the momentum of a square matrix has values of 1e-4 and below.
    wide = matrix.detach() if matrix.shape[0] <= matrix.shape[1] else matrix.detach().mT
    if wide.device.type not in _WITH_FLOAT64:
        wide = wide.cpu()
    wide = wide.to(torch.float64)
    eigenvalues: Tensor = torch.linalg.eigvalsh(wide @ wide.mT)
    return eigenvalues.clamp_(min=0.0).sqrt_().cpu()


def matrices_by_shape(
    optimizer: ROOT, groups: Sequence[Mapping[str, Any]]
) -> dict[Shape, list[Matrix]]:
    """Return all matrices that ROOT orthogonalizes in some groups, the same on every rank."""
    names = {name for group in groups for name in group["param_names"]}
    found: defaultdict[Shape, list[Matrix]] = defaultdict(list)
    assert optimizer.partition is not None
    for route in optimizer.partition.routes:
        if route.name in names:
            for number, (rows, columns) in enumerate(route.matrices):
                found[min(rows, columns), max(rows, columns)].append((route.name, number))
    return dict(found)


def pick_matrix(matrices: Sequence[Matrix], turn: int) -> Matrix:
    """Return the matrix whose turn it is: all in a round, with neighbours in time far apart."""
    count = len(matrices)
    golden = max(1, round(0.618 * count))
    stride = next(s for s in range(golden, 2 * count + 1) if math.gcd(s, count) == 1)
    return matrices[(count // 2 + turn * stride) % count]


class SpectrumCapture:
    """Captures one matrix per shape in the next step of an optimizer, then calls `then`."""

    def __init__(
        self,
        optimizer: ROOT,
        matrices: Mapping[Shape, Matrix],
        then: Callable[["SpectrumCapture"], None],
    ) -> None:
        self.found: dict[Shape, Tensor] = {}  # singular values of what was updated on this rank
        self.seconds = 0.0  # taken within the step
        self._matrices = set(matrices.values())
        self._handles = [
            optimizer.register_stack_hook(self._observe),
            optimizer.register_step_post_hook(lambda *_: then(self)),
        ]

    def end(self) -> None:
        """Remove the hooks. Not to be called within the step."""
        for handle in self._handles:
            handle.remove()

    def _observe(self, stack: Stack) -> None:
        for name, matrix in zip(stack.names, stack.orthogonalized, strict=True):
            if name in self._matrices:
                matrix[:1, :1].cpu()  # wait for the device, whose earlier work is not this one's
                began = time.perf_counter()
                # Without convergence there is none; there will be other captures.
                with suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                    values = singular_values(matrix)
                    if values[-1] > 0.0:  # the momentum of a dead layer has no spectrum
                        self.found[matrix.shape[0], matrix.shape[1]] = values
                self.seconds += time.perf_counter() - began
