"""One step as a monitor sees it: measurements, norms of the weights, samples for histograms."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from lightning_root.coefficients import Coefficients
from lightning_root.diagnostics.measurements import Measurements, measure
from lightning_root.diagnostics.spectrum import Matrix, Shape, singular_values
from lightning_root.diagnostics.statistics import Stack
from lightning_root.distributed import gather
from lightning_root.optim import ROOT
from lightning_root.partition import MatrixView

# At most so many entries of a momentum go into its histogram, evenly spread
SAMPLED_ENTRIES: Final = 4096
MIN_SIGMA: Final = 1e-8  # singular values relative to the largest; below is rounding


class MatrixInfo(NamedTuple):
    """Shape, coefficients and target of a matrix, which alerts judge its statistics by."""

    shape: Shape
    coefficients: Coefficients
    target_rms: float | None  # of a scaled update of full rank, where the scale aims at one


@dataclass(frozen=True, eq=False)
class Observation:
    """Measurements of one step on the host, with a `MatrixInfo` each, and samples by tag."""

    measurements: Measurements | None = None  # None if no matrix was updated
    infos: tuple[MatrixInfo, ...] = ()
    samples: Mapping[str, Tensor] = field(default_factory=dict)


class Observer:
    """Measures every stack of the next step of an optimizer, and samples some matrices.

    Weights are measured at once, before that step; all ranks must do so together (`weight_norms`).
    """

    def __init__(self, optimizer: ROOT, sampled: Mapping[Shape, Matrix]) -> None:
        self._parts: list[Measurements] = []
        self._infos: list[MatrixInfo] = []
        self._samples: dict[str, Tensor] = {}
        self._sampled = set(sampled.values())
        self._norms = weight_norms(optimizer)
        self._handle = optimizer.register_stack_hook(self._observe)

    def end(self) -> Observation:
        """Remove the hook and return what was measured; one copy brings it from the device."""
        self._handle.remove()
        if not self._parts:
            return Observation()
        found = Measurements.join(self._parts).cpu()
        return Observation(found, tuple(self._infos), self._samples)

    def _observe(self, stack: Stack) -> None:
        norms = torch.stack([self._norms[name] for name in stack.names])
        self._parts.append(measure(stack, norms))
        rows, columns = stack.momentum.shape[-2:]
        target = target_rms(stack.group)
        self._infos += [MatrixInfo((rows, columns), stack.coefficients, target)] * len(stack.names)
        for number, name in enumerate(stack.names):
            if name in self._sampled:
                self._samples |= samples(stack, number)


def target_rms(group: Mapping[str, Any]) -> float | None:
    """Return 0.2 where updates have the size of AdamW's, None where the scale aims at no size."""
    return 0.2 if group["adjust_lr_fn"] == "match_rms_adamw" else None


def samples(stack: Stack, number: int) -> dict[str, Tensor]:
    """Return values for three histograms of one matrix of a stack, float32 on the host, by tag."""
    # log10 of the singular values of B and of U, relative to the largest of B and as they are; and
    # |N| in units of the threshold, so that 1 is where clipping begins.
    shape = "x".join(str(size) for size in stack.momentum.shape[-2:])
    momentum = stack.momentum[number].flatten()
    threshold = stack.clipped[number].abs().amax()
    stride = math.ceil(len(momentum) / SAMPLED_ENTRIES)
    relative = (momentum[::stride].abs() / threshold).float().cpu()
    found = {f"root/momentum_over_threshold/{shape}": relative}
    for name, matrix in (("clipped_momentum", stack.clipped), ("update", stack.update)):
        try:
            values = singular_values(matrix[number])
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue  # it did not converge; there will be other samples
        if name == "clipped_momentum":
            values = values / values[-1]
        found[f"root/log10_sigma_{name}/{shape}"] = values.clamp(min=MIN_SIGMA).log10().float()
    return {tag: values for tag, values in found.items() if bool(values.isfinite().all())}


def merge(observations: Sequence[Observation]) -> Observation:
    """Merge observations into one; of a matrix that is in several, the first counts."""
    found: dict[Matrix, tuple[Tensor, MatrixInfo]] = {}
    samples: dict[str, Tensor] = {}
    for part in observations:
        if part.measurements is not None:
            columns = zip(part.measurements.values.T, part.infos, strict=True)
            for name, entry in zip(part.measurements.names, columns, strict=True):
                found.setdefault(name, entry)
            samples = {**part.samples, **samples}
    if not found:
        return Observation()
    values = torch.stack([column for column, _ in found.values()], dim=1)
    infos = tuple(info for _, info in found.values())
    return Observation(Measurements(tuple(found), values), infos, samples)


def gather_observations(observation: Observation, world_size: int) -> Observation:
    """Merge what all ranks have seen, the same on all of them. A collective; free on one rank."""
    if world_size == 1:
        return observation
    everywhere = [Observation() for _ in range(world_size)]
    dist.all_gather_object(everywhere, observation)
    return merge(everywhere)


@torch.no_grad()
def weight_norms(optimizer: ROOT) -> dict[Matrix, Tensor]:
    """Return the Frobenius norms of all matrices that ROOT updates, 0-dim, in float32 or better."""
    # A collective over the ranks that hold parts of the parameters; nothing waits for the device.
    # Of sharded parameters that are one matrix, one sum over the ranks makes the norms; one that
    # holds several is gathered, one at a time, for a part knows nothing of where a matrix ends.
    assert optimizer.partition is not None
    shards: defaultdict[object, dict[Matrix, DTensor]] = defaultdict(dict)
    blocks: dict[Matrix, Tensor] = {}
    found: dict[Matrix, Tensor] = {}
    split = optimizer.partition
    for route, parameter in zip(split.routes, split.parameters, strict=True):
        if route.role != "root":
            continue
        name, view = route.name, route.view or MatrixView()
        if not isinstance(parameter, DTensor):
            blocks |= _numbered(name, view.cut(parameter))
        elif len(route.matrices) == 1:
            layout = (parameter.device_mesh, parameter.placements)
            shards[layout][name, 0] = parameter
        else:
            cut = _numbered(name, view.cut(gather(parameter)))
            found |= dict(zip(cut, _norms(list(cut.values())), strict=True))
    for part in shards.values():
        found |= dict(zip(part, _norms_of_shards(list(part.values())), strict=True))
    return found | dict(zip(blocks, _norms(list(blocks.values())), strict=True))


def _numbered(name: str, blocks: Sequence[Tensor]) -> dict[Matrix, Tensor]:
    return {(name, number): block for number, block in enumerate(blocks)}


def _norms(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return all norms at once; what is of low precision is added up in float32."""
    if not tensors:
        return ()
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(torch._foreach_norm(list(tensors), dtype=dtype))


def _norms_of_shards(parameters: Sequence[DTensor]) -> tuple[Tensor, ...]:
    """Return norms of whole parameters of one layout. A collective; copies of a part count once."""
    local = torch.stack(_norms([parameter.to_local() for parameter in parameters]))
    placements = [
        Replicate() if placement.is_replicate() else Partial()
        for placement in parameters[0].placements
    ]
    mesh = parameters[0].device_mesh
    energies = DTensor.from_local(local.square(), mesh, placements, run_check=False)
    return energies.full_tensor().sqrt().unbind()
