"""One record for each parameter and for each matrix in it, made once.

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
from lightning_root.distributed.collectives import is_sharded
from lightning_root.functional import update_scale
from lightning_root.optim.options import PLANNED_OPTIONS, READ_OPTIONS
from lightning_root.partition import MatrixView, Role

State: TypeAlias = dict[str, Any]
Group: TypeAlias = Mapping[str, Any]

WHOLE: Final = MatrixView()
"""A parameter that is one matrix, or a convolution flattened to one."""


class Rates(NamedTuple):
    """Learning rate and decay of a parameter that are not its group's."""

    lr_scale: float  # factor on the learning rate
    weight_decay: float | None  # None for the group's

    def of(self, group: Group) -> Group:
        """Return the options of a group with these rates."""
        decay = group["weight_decay"] if self.weight_decay is None else self.weight_decay
        return {**group, "lr": group["lr"] * self.lr_scale, "weight_decay": decay}


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One entry of a parameter's state, as the stage that owns it declares it."""

    key: str  # in `state[parameter]`
    # "entries" has the parameter's shape, "matrices" `size` numbers for each matrix, one matrix
    # behind the other, "counter" is a number without dimensions
    extent: Literal["entries", "matrices", "counter"]
    # of the entry where it is saved, and kept unless that is in 8 bits
    dtype: Callable[[Tensor, Group], torch.dtype]
    role: Role  # of the parameters that have the entry
    is_on: Callable[[Group], bool] = lambda _: True  # whether they have it under these options
    # of "matrices": how many numbers one of that many rows and columns has
    size: Callable[[Sequence[int], Group], int] = lambda *_: 0
    rests: bool = False  # whether it changes only in steps in which covariances advance

    def sizes(self, view: MatrixView, shape: Sequence[int], group: Group) -> list[int]:
        """Return how many numbers each matrix of a parameter has."""
        return [self.size(matrix, group) for matrix in view.matrices(shape)]


@dataclass(frozen=True, slots=True, eq=False)
class MatrixBlock:
    """One matrix: where it lies in its parameter, and what a step needs to know of it."""

    name: str  # of the parameter
    number: int  # of the matrix within the parameter of that name
    shape: tuple[int, int]  # (rows, columns), as they are stored
    index: tuple[int, ...]  # of the matrix in a stack; () where there is none
    start: tuple[int, int]  # first row and column within the flattened parameter
    cut: tuple[bool, bool]  # whether rows, and columns, have to be cut out
    by_rows: bool  # whether its neurons are the rows: the longer side, of a square the outputs
    scale: float  # of the update
    rates: Rates | None  # None for those of its group
    coefficients: Coefficients  # of the orthogonalization

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


class BlockStep(NamedTuple):
    """One block in one step: the tensors that it takes and gives."""

    block: MatrixBlock
    gradient: Tensor | None  # G, (rows, columns); None where `momentum` is N already
    momentum: Tensor  # M before the step, or N; alike
    target: Tensor  # W, or the place where U goes; alike
    finite: Tensor | None  # whether G may be used, on the device; None where it may
    state: Mapping[str, Tensor]  # what it has of state that is kept by matrices, flat, by key
    source: Tensor | None = None  # G where a stage wants it beside N; alike
    age: int = 0  # of the preconditioner's roots in this step; 0 where they are renewed
    measures: bool = True  # whether covariances advance in this step


NO_STATE: Final[Mapping[str, Tensor]] = {}


@dataclass(slots=True, eq=False)
class BoundParameter:
    """A parameter under its rule, its blocks, and what the present step has of it."""

    name: str  # of the parameter
    parameter: Tensor  # the whole of it, a DTensor, or this rank's matrices of a stack
    view: MatrixView  # how it is cut into matrices
    blocks: tuple[MatrixBlock, ...]  # its matrices, in the order of the view; none under AdamW
    is_matrix: bool  # whether it is stored as the one matrix that it holds
    is_sharded: bool  # whether it is a DTensor
    rates: Rates | None  # None for those of its group
    gradient: Tensor  # G of this step
    state: State = field(default_factory=dict)  # what the optimizer keeps for it
    finite: Tensor | None = None  # whether G may be used, on the device; None where it may
    age: int = 0  # of the preconditioner's roots in this step; 0 where they are renewed
    measures: bool = True  # whether covariances advance in this step

    def cut(self, tensor: Tensor) -> Sequence[Tensor]:  # (rows, columns) of each block
        """Take every matrix out of a tensor of the parameter's shape."""
        return (tensor,) if self.is_matrix else [block.of(tensor) for block in self.blocks]

    def is_in_place(self) -> bool:
        """Return whether all matrices of parameter, gradient and momentum are views."""
        if self.parameter.ndim == self.view.stack + 2:
            return True
        momentum = self.state["momentum_buffer"]
        tensors = [self.parameter, self.gradient]
        tensors += [momentum] if momentum.ndim == self.parameter.ndim else []
        return all(map(self.view.is_view, tensors))


@dataclass(slots=True, eq=False)
class GroupPlan:
    """The parameters of a group under one rule, with all that stays from step to step."""

    group: Group  # the options, read in every step where they are not in `PLANNED_OPTIONS`
    role: Role  # the rule
    parameters: list[BoundParameter]  # in the order of the group
    specs: tuple[StateSpec, ...]  # of the state that its parameters have
    keys: frozenset[str]  # of that state
    of_matrices: tuple[StateSpec, ...]  # of what it has by matrices
    wants_source: bool  # whether a stage wants G beside N where covariances advance
    # the parameters with a usable gradient in this step
    live: list[BoundParameter] = field(default_factory=list)
    hooks: Sequence[Callable[[Any], None]] = ()  # to be called with every stack of this step
    # of lists of blocks that have been updated together
    schedules: dict[Hashable, Any] = field(default_factory=dict)


def plan_group(
    group: Group, role: Role, parameters: list[BoundParameter], specs: tuple[StateSpec, ...]
) -> GroupPlan:
    """Settle everything about these parameters of a group that stays from step to step."""
    keys = frozenset(spec.key for spec in specs)
    of_matrices = tuple(spec for spec in specs if spec.extent == "matrices")
    wants_source = group["precondition"] != "none" and group["precondition_source"] == "gradient"
    return GroupPlan(group, role, parameters, specs, keys, of_matrices, wants_source)


def basis_of(group: Group) -> list[Any]:
    """Return what plans rest on: identity and kind of the parameters, and options."""
    parameters = group["params"]
    return [
        id(group),
        *map(id, parameters),
        *[parameter.dtype for parameter in parameters],
        *[parameter.device for parameter in parameters],
        *[group[option] for option in PLANNED_OPTIONS],
        *[type(group[option]) for option in READ_OPTIONS],
    ]


def bind_parameter(
    name: str,
    parameter: Tensor,
    view: MatrixView | None,
    group: Group,
    rates: Rates | None = None,
    first: int = 0,
) -> BoundParameter:
    """Settle what steps need to know of a parameter; `first` is the number of its first matrix.

    AdamW's has no view.
    """
    blocks: tuple[MatrixBlock, ...] = ()
    if view is not None and parameter.numel():
        blocks = tuple(blocks_of(name, parameter.shape, view, group, rates, first))
    view = view or WHOLE
    is_matrix = len(blocks) == 1 and parameter.ndim == 2
    sharded = is_sharded(parameter)
    return BoundParameter(name, parameter, view, blocks, is_matrix, sharded, rates, parameter)


def blocks_of(
    name: str,
    shape: Sequence[int],
    view: MatrixView,
    group: Group,
    rates: Rates | None = None,
    first: int = 0,
) -> Iterator[MatrixBlock]:
    """Yield the matrices of a parameter, numbered as its view numbers them."""
    stack = [range(size) for size in shape[: view.stack]]
    extent = view.matrices([1] * view.stack + list(shape[view.stack :]))
    rows = view.rows or (shape[view.stack],)
    columns = view.columns or (extent[0][1],)
    places = list(product(_starts(rows), _starts(columns)))
    cut = (len(rows) > 1, len(columns) > 1)
    number = first
    for index in product(*stack):
        for size, start in zip(extent, places, strict=True):
            outputs, inputs = size[::-1] if view.transposed else size
            by_rows = size[0] > size[1] or (size[0] == size[1] and not view.transposed)
            scale = update_scale(outputs, inputs, group["adjust_lr_fn"])
            found = lookup(size, group["coefficients"], group["ns_steps"])
            yield MatrixBlock(name, number, size, index, start, cut, by_rows, scale, rates, found)
            number += 1


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


def travelling_sizes(
    plan: GroupPlan, block: MatrixBlock, measures: bool, kept: torch.dtype, sent: torch.dtype
) -> tuple[int, ...]:
    """Return how many numbers of the dtype that is sent hold the state that a step changes."""
    times = kept.itemsize // sent.itemsize
    specs = [spec for spec in plan.of_matrices if measures or not spec.rests]
    return tuple(times * spec.size(block.shape, plan.group) for spec in specs)


def travelling(
    plan: GroupPlan, state: Mapping[str, Tensor], measures: bool, sent: torch.dtype
) -> list[Tensor]:
    """Return that state of a block, as views in the dtype that is sent."""
    keys = [spec.key for spec in plan.of_matrices if measures or not spec.rests]
    return [state[key].view(sent) for key in keys if key in state]
