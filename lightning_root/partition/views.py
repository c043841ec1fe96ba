"""The cut of a parameter into matrices: one description for partition and optimizer."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MatrixView:
    """How a parameter is cut into matrices: data, not behaviour of a module.

    The parameter is seen as (stack..., rows, columns), with all that follows the rows flattened
    into the columns, as for a convolution. Then rows and columns are cut. Matrices are in the order
    of the stack, in it of the row blocks, in these of the column blocks.

    Args:
        stack: How many leading dimensions count matrices; 1 for a stack of experts.
        rows: Sizes of the row blocks, None for one block.
        columns: Sizes of the column blocks, None for one block.
        transposed: Whether the parameter is stored as (in, out), as in transformers' Conv1D: for
            scales that tell rows from columns. Blocks keep the orientation of the parameter.

    Raises:
        TypeError: When `stack` or a size is not an integer, or sizes are not a tuple.
        ValueError: When `stack` is negative, or a size is not positive.

    Example:
        >>> view = MatrixView(rows=(4, 2, 2))  # grouped queries: q, k, v
        >>> view.matrices((8, 6))
        [(4, 6), (2, 6), (2, 6)]
        >>> weight = torch.zeros(8, 6)
        >>> for number, block in enumerate(view.cut(weight)):
        ...     _ = block.fill_(number)
        >>> weight[:, 0].tolist()
        [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    """

    stack: int = 0
    rows: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    transposed: bool = False

    def __post_init__(self) -> None:
        if type(self.stack) is not int or not isinstance(self.transposed, bool):
            got = f"{self.stack!r} and {self.transposed!r}"
            raise TypeError(f"`stack` must be an integer and `transposed` a boolean, got {got}.")
        if self.stack < 0:
            raise ValueError(f"`stack` must be >= 0, got {self.stack}; 1 is right for experts.")
        _check_sizes("rows", self.rows)
        _check_sizes("columns", self.columns)

    def check(self, shape: Sequence[int]) -> None:
        """Refuse a whole parameter's `shape` that this view does not fit.

        Raises:
            ValueError: When too few dimensions are left for a matrix, or sizes do not add up.
        """
        if len(shape) < self.stack + 2:
            raise ValueError(
                f"`stack` must leave two dimensions for the matrices, got {self.stack} for the "
                f"shape {tuple(shape)}; at most {max(len(shape) - 2, 0)} is possible."
            )
        if self.rows is None and self.columns is None:
            return
        for name, sizes, extent in (
            ("rows", self.rows, shape[self.stack]),
            ("columns", self.columns, math.prod(shape[self.stack + 1 :])),
        ):
            if sizes is not None and sum(sizes) != extent:
                terms = " + ".join(map(str, sizes[:4])) + (" + ..." if len(sizes) > 4 else "")
                raise ValueError(
                    f"`{name}` must add up to the {extent} {name} of shape {tuple(shape)}, got "
                    f"{terms} = {sum(sizes)}."
                )

    def matrices(self, shape: Sequence[int]) -> list[tuple[int, int]]:
        """Return the shape of each matrix of a whole parameter's `shape`, in the order of `cut`.

        Raises:
            ValueError: When the view does not fit the shape.
        """
        self.check(shape)
        rows = self.rows or (shape[self.stack],)
        columns = self.columns or (math.prod(shape[self.stack + 1 :]),)
        return list(product(rows, columns)) * math.prod(shape[: self.stack])

    def cut(self, tensor: Tensor) -> list[Tensor]:
        """Cut a whole parameter, or anything of its shape, into its matrices.

        Returns:
            2-D blocks. They are views, and writing into them writes `tensor`, where `is_view`;
            otherwise they are copies, for `paste` to write back.

        Raises:
            ValueError: When the view does not fit the shape.
        """
        self.check(tensor.shape)
        return [
            columns
            for matrix in self._matrices_of(tensor)
            for rows in _split_dim(matrix, 0, self.rows)
            for columns in _split_dim(rows.flatten(1), 1, self.columns)
        ]

    def paste(self, tensor: Tensor, blocks: Sequence[Tensor]) -> None:
        """Write blocks back to where `cut` takes them from, whatever the memory of `tensor`.

        Not needed after an update in place of blocks that are views.

        Raises:
            ValueError: When blocks are missing or left over, have a wrong shape, or when the view
                does not fit the tensor.
        """
        expected, got = self.matrices(tensor.shape), [tuple(block.shape) for block in blocks]
        if got != expected:
            raise ValueError(
                f"`blocks` must be {_count_shapes(expected)}, got {_count_shapes(got)}; pass what "
                "`cut` returned."
            )
        # Blocks that are views of `tensor` must not change while it is written.
        memory = tensor.untyped_storage().data_ptr()
        alias = [block.untyped_storage().data_ptr() == memory for block in blocks]
        remaining = iter([b.clone() if a else b for b, a in zip(blocks, alias, strict=True)])
        for matrix in self._matrices_of(tensor):
            for target in _split_dim(matrix, 0, self.rows):
                parts = [next(remaining) for _ in self.columns or (0,)]
                whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
                target.copy_(whole.reshape(target.shape))

    def is_view(self, tensor: Tensor) -> bool:
        """Tell whether the blocks of `cut` share the memory of `tensor`: not in `channels_last`."""
        self.check(tensor.shape)
        if tensor.ndim == self.stack + 2 or tensor.is_contiguous():
            return True
        first = self.stack + 1
        dims = zip(tensor.shape[first:], tensor.stride()[first:], strict=True)
        return tensor.numel() == 0 or all(
            stride == size * inner_stride
            for (_, stride), (size, inner_stride) in pairwise(d for d in dims if d[0] != 1)
        )

    def _matrices_of(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield a view of (rows, ...) for each index into the stack."""
        for index in product(*map(range, tensor.shape[: self.stack])):
            yield tensor[index] if index else tensor


def describe_view(view: MatrixView, shape: Sequence[int]) -> str:
    """Say in words what a view makes of a shape: "3 blocks of (256, 256)", "" if nothing."""
    matrices = view.matrices(shape)
    words = [_count_shapes(matrices)] if len(matrices) > 1 else []
    return ", ".join([*words, "stored as (in, out)"] if view.transposed else words)


def _count_shapes(matrices: Sequence[tuple[int, ...]]) -> str:
    """Count equal shapes: "3 blocks of (4, 6)", "blocks of (8, 6), 2 x (4, 6)"."""
    count = Counter(matrices)
    if len(count) == 1:
        ((shape, times),) = count.items()
        return f"{times} block{'s' if times > 1 else ''} of {shape}"
    if len(count) > 3:
        return f"{len(matrices)} blocks of {len(count)} shapes"
    parts = (f"{times} x {shape}" if times > 1 else str(shape) for shape, times in count.items())
    return f"blocks of {', '.join(parts)}" if count else "no blocks"


def _check_sizes(name: str, sizes: object) -> None:
    """Raise TypeError or ValueError if sizes of row or column blocks are not positive integers."""
    if sizes is None:
        return
    if not isinstance(sizes, tuple) or any(type(size) is not int for size in sizes):
        raise TypeError(f"`{name}` must be None or a tuple of integers, got {sizes!r}.")
    if not sizes or min(sizes) < 1:
        whole = f"None is one block of all {name}"
        raise ValueError(f"`{name}` must hold positive sizes, got {sizes}; {whole}.")


def _split_dim(matrix: Tensor, dim: int, sizes: tuple[int, ...] | None) -> list[Tensor]:
    """Cut one dimension; `narrow` gives views that may be written in place one by one."""
    if sizes is None:
        return [matrix]
    starts = accumulate(sizes, initial=0)
    return [matrix.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=False)]
