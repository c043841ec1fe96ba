"""A cut as the user writes it: plain data that YAML holds, with numbers of equal blocks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_root.partition.views import MatrixView

_KEYS = ("rows", "columns", "stack", "transposed")

Blocks = int | tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CutSpec:
    """A cut that is not yet about a shape.

    Args:
        rows: Sizes of the row blocks, or how many equal ones; None for one block.
        columns: The same for the columns.
        stack: How many leading dimensions count matrices.
        transposed: Whether the parameter is stored as (in, out).
    """

    rows: Blocks = None
    columns: Blocks = None
    stack: int = 0
    transposed: bool = False

    @classmethod
    def parse(cls, data: Mapping[Any, Any]) -> "CutSpec":
        """Check plain data.

        Raises:
            TypeError: When a size or `stack` is not an integer, or `transposed` not a boolean.
            ValueError: When a key is unknown, or a number not positive.
        """
        if unknown := [key for key in data if key not in _KEYS]:
            raise ValueError(
                f"a cut has the keys 'role', {', '.join(map(repr, _KEYS))}, got {unknown[0]!r}."
            )
        spec = cls(
            rows=_blocks("rows", data.get("rows")),
            columns=_blocks("columns", data.get("columns")),
            stack=data.get("stack", 0),
            transposed=data.get("transposed", False),
        )
        MatrixView(stack=spec.stack, transposed=spec.transposed)  # checks them
        return spec

    @classmethod
    def of_view(cls, view: MatrixView) -> "CutSpec":
        """Take over a view, which holds sizes only."""
        return cls(
            rows=view.rows, columns=view.columns, stack=view.stack, transposed=view.transposed
        )

    def resolve(self, shape: tuple[int, ...]) -> MatrixView | None:
        """Return the view for a shape, None when it is the whole parameter.

        Raises:
            ValueError: When the view does not fit the shape.
        """
        MatrixView(stack=self.stack).check(shape)
        view = MatrixView(
            rows=_sizes("rows", self.rows, shape[self.stack]),
            columns=_sizes("columns", self.columns, math.prod(shape[self.stack + 1 :])),
            stack=self.stack,
            transposed=self.transposed,
        )
        view.check(shape)
        return None if view == MatrixView() else view


def _blocks(name: str, value: object) -> Blocks:
    """Check a number of equal blocks or a list of sizes."""
    match value:
        case None:
            return None
        case bool():
            pass
        case int() if value > 0:
            return value
        case int():
            raise ValueError(f"`{name}` must be at least 1 block, got {value}.")
        case Sequence() if not isinstance(value, str):
            MatrixView(rows=tuple(value)) if name == "rows" else MatrixView(columns=tuple(value))
            return tuple(value)
    raise TypeError(f"`{name}` must be a number of equal blocks or a list of sizes, got {value!r}.")


def _sizes(name: str, blocks: Blocks, extent: int) -> tuple[int, ...] | None:
    """Turn a number of equal blocks into sizes."""
    if not isinstance(blocks, int):
        return blocks
    if extent % blocks:
        raise ValueError(
            f"`{name}` must divide the {extent} {name} into equal blocks, got {blocks}; "
            "list the sizes of unequal ones."
        )
    return (extent // blocks,) * blocks if blocks > 1 else None
