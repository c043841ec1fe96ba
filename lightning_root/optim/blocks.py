"""What the optimizer knows of each parameter and of each matrix in it, settled once.

Names, slices, scales and coefficients are found when parameters are bound and kept until the groups
change; a step only reads them.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_root.coefficients import Coefficients, lookup
from lightning_root.functional import update_scale
from lightning_root.partition import MatrixView

State: TypeAlias = dict[str, Any]
Group: TypeAlias = Mapping[str, Any]
Names: TypeAlias = tuple[tuple[str, int], ...]
"""Parameter and number of each matrix."""

WHOLE: Final = MatrixView()
"""A parameter that is one matrix, or a convolution flattened to one."""

PLANNED: Final = (
    *("coefficients", "ns_steps", "adjust_lr_fn", "ns_dtype", "ns_form", "kernels", "normalize"),
    *("outlier_quantile", "outlier_quantile_mode", "momentum_dtype", "capturable"),
)
"""Options that a plan rests on; the others are read in every step."""


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One entry of a parameter's state, as the stage that owns it declares it.

    Args:
        key: In `state[parameter]`.
        extent: "entries" has the parameter's shape, "neurons" one number for each row or column
            along the longer side of every matrix, "counter" is a number without dimensions.
        dtype: Of the entry where it is saved, and kept unless that is in 8 bits.
        is_on: Whether groups with these options have the entry.
    """

    key: str
    extent: Literal["entries", "neurons", "counter"]
    dtype: Callable[[Tensor, Group], torch.dtype]
    is_on: Callable[[Group], bool]


@dataclass(frozen=True, slots=True, eq=False)
class MatrixBlock:
    """One matrix: where it lies in its parameter, and what a step needs to know of it.

    Args:
        name: Of the parameter.
        number: Of the matrix within the parameter of that name.
        shape: (rows, columns), as they are stored.
        index: Of the matrix in a stack; () where there is none.
        start: First row and column within the flattened parameter.
        cut: Whether rows, and columns, have to be cut out.
        by_rows: Whether its neurons are the rows: the longer side, of a square the outputs.
        first_neuron: Place of its first neuron among all of the parameter.
        scale: Factor on the learning rate.
        coefficients: Of the orthogonalization.
    """

    name: str
    number: int
    shape: tuple[int, int]
    index: tuple[int, ...]
    start: tuple[int, int]
    cut: tuple[bool, bool]
    by_rows: bool
    first_neuron: int
    scale: float
    coefficients: Coefficients

    @property
    def elements(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]

    def of(self, tensor: Tensor) -> Tensor:  # (rows, columns)
        """Take the matrix out of a tensor of the parameter's shape: a view where memory allows."""
        matrix = tensor[self.index] if self.index else tensor
        if self.cut[0]:
            matrix = matrix.narrow(0, self.start[0], self.shape[0])
        if matrix.ndim > 2:
            matrix = matrix.flatten(1)
        return matrix.narrow(1, self.start[1], self.shape[1]) if self.cut[1] else matrix


class Operands(NamedTuple):
    """The tensors of one block in one step.

    Args:
        gradient: G, (rows, columns); None where `momentum` is N already.
        momentum: M before the step, or N; alike.
        target: W, or the place where U goes; alike.
        finite: Whether G may be used, on the device; None where it may.
        neurons: State with one number per neuron, (neurons,), by key.
    """

    gradient: Tensor | None
    momentum: Tensor
    target: Tensor
    finite: Tensor | None
    neurons: Mapping[str, Tensor]


NO_NEURONS: Final[Mapping[str, Tensor]] = {}


@dataclass(slots=True, eq=False)
class BoundParameter:
    """A parameter under its rule, its blocks, and what the present step has of it.

    Args:
        name: Of the parameter.
        parameter: The whole of it, a DTensor, or this rank's matrices of a stack.
        view: How it is cut into matrices.
        blocks: Its matrices, in the order of the view; none under AdamW.
        is_matrix: Whether it is stored as the one matrix that it holds.
        gradient: G of this step.
        state: What the optimizer keeps for it.
        finite: Whether G may be used, on the device; None where it may.
    """

    name: str
    parameter: Tensor
    view: MatrixView
    blocks: tuple[MatrixBlock, ...]
    is_matrix: bool
    gradient: Tensor
    state: State = field(default_factory=dict)
    finite: Tensor | None = None

    def cut(self, tensor: Tensor) -> Sequence[Tensor]:  # (rows, columns) of each block
        """Take every matrix out of a tensor of the parameter's shape."""
        return (tensor,) if self.is_matrix else [block.of(tensor) for block in self.blocks]

    def is_in_place(self) -> bool:
        """Return whether all matrices of parameter and gradient are views of their memory."""
        if self.is_matrix:
            return True
        return self.view.is_view(self.parameter) and self.view.is_view(self.gradient)


@dataclass(slots=True, eq=False)
class GroupPlan:
    """A parameter group with everything about it that stays from step to step.

    Args:
        group: The options, read in every step where they are not in `PLANNED`.
        parameters: In the order of the group.
        specs: Of the state that its parameters have.
        keys: Of that state.
        neuron_keys: Of what it has per neuron.
        basis: What the plan rests on; another one calls for another plan.
        live: The parameters with a usable gradient in this step.
        schedules: Of lists of blocks that have been updated together.
    """

    group: Group
    parameters: list[BoundParameter]
    specs: tuple[StateSpec, ...]
    keys: frozenset[str]
    neuron_keys: tuple[str, ...]
    basis: list[Any]
    live: list[BoundParameter] = field(default_factory=list)
    schedules: dict[Hashable, Any] = field(default_factory=dict)

    def is_of(self, group: Group) -> bool:
        """Return whether a group is the plan's own and has not changed since."""
        return group is self.group and basis_of(group) == self.basis


def plan_group(
    group: Group, views: Mapping[str, MatrixView], specs: tuple[StateSpec, ...]
) -> GroupPlan:
    """Settle everything about a group's parameters that stays from step to step."""
    parameters = []
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        view = views.get(name, WHOLE)
        if group["role"] == "root" and parameter.numel():
            parameters.append(bind_parameter(name, parameter, view, group))
        else:
            parameters.append(BoundParameter(name, parameter, view, (), False, parameter))
    keys = frozenset(spec.key for spec in specs)
    neuron_keys = tuple(spec.key for spec in specs if spec.extent == "neurons")
    return GroupPlan(group, parameters, specs, keys, neuron_keys, basis_of(group))


def basis_of(group: Group) -> list[Any]:
    """Return what a plan rests on: identity and kind of the parameters, and `PLANNED` options."""
    parameters = group["params"]
    return [
        *map(id, parameters),
        *[parameter.dtype for parameter in parameters],
        *[parameter.device for parameter in parameters],
        *[group[option] for option in PLANNED],
    ]


def bind_parameter(
    name: str, parameter: Tensor, view: MatrixView, group: Group, first: int = 0
) -> BoundParameter:
    """Settle what steps need to know of a parameter; `first` is the number of its first matrix."""
    blocks = tuple(blocks_of(name, parameter.shape, view, group, first))
    is_matrix = len(blocks) == 1 and parameter.ndim == 2
    return BoundParameter(name, parameter, view, blocks, is_matrix, gradient=parameter)


def blocks_of(
    name: str, shape: Sequence[int], view: MatrixView, group: Group, first: int = 0
) -> Iterator[MatrixBlock]:
    """Yield the matrices of a parameter, numbered as its view numbers them."""
    stack = [range(size) for size in shape[: view.stack]]
    extent = view.matrices([1] * view.stack + list(shape[view.stack :]))
    rows = view.rows or (shape[view.stack],)
    columns = view.columns or (extent[0][1],)
    places = list(product(_starts(rows), _starts(columns)))
    cut = (len(rows) > 1, len(columns) > 1)
    number, neuron = first, 0
    for index in product(*stack):
        for size, start in zip(extent, places, strict=True):
            outputs, inputs = size[::-1] if view.transposed else size
            by_rows = size[0] > size[1] or (size[0] == size[1] and not view.transposed)
            scale = update_scale(outputs, inputs, group["adjust_lr_fn"])
            found = lookup(size, group["coefficients"], group["ns_steps"])
            yield MatrixBlock(name, number, size, index, start, cut, by_rows, neuron, scale, found)
            number, neuron = number + 1, neuron + max(size)


def _starts(sizes: Sequence[int]) -> list[int]:
    return list(accumulate(sizes[:-1], initial=0))


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Return float32, or float64 for float64 parameters."""
    return torch.promote_types(parameter.dtype, torch.float32)


def momentum_dtype(parameter: Tensor, group: Group) -> torch.dtype:
    """Return in which dtype a matrix's momentum is saved, and kept unless that is in 8 bits."""
    return state_dtype(parameter) if group["momentum_dtype"] == "auto" else torch.bfloat16


def shared_dtype(momentum: Tensor, group: Group) -> torch.dtype:
    """Return in which dtype the updates of matrices travel between ranks."""
    return torch.bfloat16 if group["share_dtype"] == "bfloat16" else state_dtype(momentum)
