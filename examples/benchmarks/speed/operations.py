"""How many operations an orthogonalization needs, and how long a step takes at the least.

A multiply-add is two operations. Matrices are (m, n) with m <= n, T steps. A symmetric product
(X X', or a product of two polynomials of one symmetric matrix) needs only half of its entries.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from examples.benchmarks.speed.machine import Limits

Count: TypeAlias = Callable[[int, int, int], float]


def standard(m: int, n: int, steps: int) -> float:
    """X X', (X X')^2 and their polynomial times X, every step: what is published."""
    return steps * (4 * m * m * n + 2 * m**3)


def standard_symmetric(m: int, n: int, steps: int) -> float:
    """The same with the two symmetric products at half their cost."""
    return steps * (3 * m * m * n + m**3)


def gram(m: int, n: int, steps: int, restarts: int = 0) -> float:
    """The iteration on the m x m Gram matrix; the m x n matrix is read and written at the ends.

    A step multiplies the Gram matrix by itself, twice by the polynomial, and the polynomials with
    each other: four products of m x m matrices. The first step of a stretch has no polynomial to
    multiply with, the last needs no new Gram matrix.
    """
    ends = restarts + 1
    return 4 * ends * m * m * n + (8 * steps - 6 * ends) * m**3


def gram_symmetric(m: int, n: int, steps: int, restarts: int = 0) -> float:
    """The same with every symmetric product at half its cost."""
    ends = restarts + 1
    return 3 * ends * m * m * n + (4 * steps - 3 * ends) * m**3


FORMS: dict[str, Count] = {
    "standard": standard,
    "standard, symmetric": standard_symmetric,
    "Gram": gram,
    "Gram, symmetric": gram_symmetric,
}


def matrix_size(shape: Sequence[int]) -> tuple[int, int]:
    """(m, n), m <= n, of a parameter; all but its first dimension are columns."""
    rows, columns = shape[0], math.prod(shape[1:])
    return min(rows, columns), max(rows, columns)


@dataclass(frozen=True)
class Work:
    """What one step has to do for a set of parameters.

    Args:
        published: Operations of the published form.
        cheapest: Operations of the cheapest form of each matrix, symmetric products at half cost.
        traffic: Bytes that every way of doing it reads or writes: gradient in, momentum in and
            out, update out and in, parameter in and out; 28 an element where all are float32.
    """

    published: float
    cheapest: float
    traffic: float

    def floor(self, limits: Limits) -> float:
        """Seconds: the cheapest products at the best rate, and the traffic at full bandwidth."""
        return self.cheapest / limits.rate() + self.traffic / limits.bandwidth


def work(shapes: Sequence[Sequence[int]], steps: int = 5, itemsize: int = 4) -> Work:
    """Count the work of a step.

    Args:
        shapes: Of the parameters.
        steps: T.
        itemsize: Bytes of an element of a parameter and of its gradient; momentum and update are
            float32.
    """
    sizes = [matrix_size(shape) for shape in shapes]
    elements = sum(m * n for m, n in sizes)
    return Work(
        published=sum(standard(m, n, steps) for m, n in sizes),
        cheapest=sum(min(count(m, n, steps) for count in FORMS.values()) for m, n in sizes),
        traffic=float(elements * (4 * 4 + 3 * itemsize)),
    )
