"""Live spectra: the singular values of chosen matrices, taken in the middle of one step."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from lightning_root.coefficients.shapes import Shape as Shape
from lightning_root.optim import ROOT, Stack

Matrix: TypeAlias = tuple[str, int]
"""Name of a parameter, and number of the matrix within it."""

_WITH_FLOAT64: Final = ("cpu", "cuda")


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of one matrix, ascending, as float64 on the host.

    They are the roots of the eigenvalues of the Gram matrix in float64. That is right to 1e-8 of
    the largest, finer than float32 entries are, and for wide matrices several times cheaper than a
    decomposition; the momentum of a square matrix has values of 1e-4 and below. Devices without
    float64 hand the matrix to the host.

    Args:
        matrix: Shape (m, n), any floating dtype, any device; it is not changed.

    Returns:
        Shape (min(m, n),).

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics.spectrum import singular_values
        >>> singular_values(torch.diag(torch.tensor([3.0, 4.0]))).tolist()
        [3.0, 4.0]
    """
    wide = matrix.detach() if matrix.shape[0] <= matrix.shape[1] else matrix.detach().mT
    if wide.device.type not in _WITH_FLOAT64:
        wide = wide.cpu()
    wide = wide.to(torch.float64)
    eigenvalues: Tensor = torch.linalg.eigvalsh(wide @ wide.mT)
    return eigenvalues.clamp_(min=0.0).sqrt_().cpu()


def matrices_by_shape(
    optimizer: ROOT, groups: Sequence[Mapping[str, Any]]
) -> dict[Shape, list[Matrix]]:
    """Every matrix that ROOT orthogonalizes in these parameter groups, the same on every rank.

    Args:
        optimizer: With its parameters bound.
        groups: Some of its parameter groups.
    """
    names = {name for group in groups for name in group["param_names"]}
    found: defaultdict[Shape, list[Matrix]] = defaultdict(list)
    assert optimizer.partition is not None
    for route in optimizer.partition.routes:
        if route.name in names:
            for number, (rows, columns) in enumerate(route.matrices):
                found[min(rows, columns), max(rows, columns)].append((route.name, number))
    return dict(found)


def in_turn(matrices: Sequence[Matrix], turn: int) -> Matrix:
    """The matrix whose turn it is: all in a round, with neighbours in time far apart in the model.

    Args:
        matrices: In the order of the model.
        turn: Number of the capture, from 0.
    """
    count = len(matrices)
    golden = max(1, round(0.618 * count))
    stride = next(s for s in range(golden, 2 * count + 1) if math.gcd(s, count) == 1)
    return matrices[(count // 2 + turn * stride) % count]


class SpectrumCapture:
    """Looks at chosen matrices in the next step of an optimizer, and changes nothing.

    Args:
        optimizer: The one that will step.
        wanted: One matrix per shape.
        then: Called with this object when that step is done.

    Attributes:
        found: Singular values by shape, of those matrices that were updated on this rank.
        seconds: Time taken within the step.
    """

    def __init__(
        self,
        optimizer: ROOT,
        wanted: Mapping[Shape, Matrix],
        then: Callable[["SpectrumCapture"], None],
    ) -> None:
        self.found: dict[Shape, Tensor] = {}
        self.seconds = 0.0
        self._wanted = set(wanted.values())
        self._handles = [
            optimizer.register_stack_hook(self._look),
            optimizer.register_step_post_hook(lambda *_: then(self)),
        ]

    def end(self) -> None:
        """Take the hooks away. Not to be called within the step."""
        for handle in self._handles:
            handle.remove()

    def _look(self, stack: Stack) -> None:
        for name, matrix in zip(stack.names, stack.clipped, strict=True):
            if name in self._wanted:
                matrix[:1, :1].cpu()  # wait for the device, whose earlier work is not this one's
                began = time.perf_counter()
                self._take(matrix)
                self.seconds += time.perf_counter() - began

    def _take(self, matrix: Tensor) -> None:
        m, n = matrix.shape
        try:
            values = singular_values(matrix)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return  # it did not converge; there will be other captures
        if values[-1] > 0.0:  # the momentum of a dead layer has no spectrum
            self.found[m, n] = values
