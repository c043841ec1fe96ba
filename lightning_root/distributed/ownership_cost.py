"""What a matrix costs in a step: operations of its orthogonalization, a multiply-add being two."""

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias

Shape: TypeAlias = tuple[int, int]
Cost: TypeAlias = Callable[[Shape, int], int]
"""Operations of a matrix of this shape, either way round, in so many steps of the iteration."""

CostForm: TypeAlias = Literal["cheapest", "standard"]


def cheapest_operations(shape: Shape, steps: int) -> int:
    """Operations of the cheaper form, where a symmetric product takes half of a plain one.

    With m <= n and T steps: T (3 m^2 n + m^3) on the matrix, 3 m^2 n + (4 T - 3) m^3 on its Gram
    matrix, which is what pays for wide ones.

    Example:
        >>> from lightning_root.distributed import cheapest_operations
        >>> cheapest_operations((768, 768), 5) == 20 * 768**3
        True
        >>> cheapest_operations((3072, 768), 5) == 29 * 768**3
        True
    """
    m, n = sorted(shape)
    return min(steps * (3 * m * m * n + m**3), 3 * m * m * n + (4 * steps - 3) * m**3)


def standard_operations(shape: Shape, steps: int) -> int:
    """Operations on the matrix itself with plain products, as on accelerators: T (4 m^2 n + 2 m^3).

    Example:
        >>> from lightning_root.distributed import standard_operations
        >>> standard_operations((768, 3072), 5) == 90 * 768**3
        True
    """
    m, n = sorted(shape)
    return steps * (4 * m * m * n + 2 * m**3)


COSTS: Final[Mapping[CostForm, Cost]] = {
    "cheapest": cheapest_operations,
    "standard": standard_operations,
}
