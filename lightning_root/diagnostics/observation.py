"""What a monitor sees of one step: measurements, what they are to be judged by, a few samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_root.coefficients import Coefficients
from lightning_root.diagnostics.measurements import Measurements, measure
from lightning_root.diagnostics.spectrum import Matrix, Shape, singular_values
from lightning_root.diagnostics.weights import weight_norms
from lightning_root.optim import ROOT, Stack

SAMPLED_ENTRIES: Final = 4096
"""At most so many entries of a momentum go into its histogram, evenly spread."""

LEAST_SIGMA: Final = 1e-8
"""Singular values relative to the largest; below is rounding."""


class Facts(NamedTuple):
    """What is known of a matrix without measuring it."""

    shape: Shape
    coefficients: Coefficients
    target_rms: float | None
    """Root mean square of a scaled update of full rank, where the scale aims at one."""


@dataclass(frozen=True, eq=False)
class Observation:
    """One step, on the host.

    Args:
        measurements: None if no matrix was updated.
        facts: One for each matrix of `measurements`.
        samples: Values for histograms, by tag.
    """

    measurements: Measurements | None = None
    facts: tuple[Facts, ...] = ()
    samples: Mapping[str, Tensor] = field(default_factory=dict)


class Observer:
    """Looks at every stack of the next step of an optimizer, and changes nothing.

    Weights are looked at now, before that step; all ranks must do so together (`weight_norms`).

    Args:
        optimizer: The one that will step.
        sampled: One matrix per shape, of which samples are taken.
    """

    def __init__(self, optimizer: ROOT, sampled: Mapping[Shape, Matrix]) -> None:
        self._parts: list[Measurements] = []
        self._facts: list[Facts] = []
        self._samples: dict[str, Tensor] = {}
        self._sampled = set(sampled.values())
        self._norms = weight_norms(optimizer)
        self._handle = optimizer.register_stack_hook(self._look)

    def end(self) -> Observation:
        """Stop looking. One copy from the device brings all that was measured."""
        self._handle.remove()
        if not self._parts:
            return Observation()
        found = Measurements.join(self._parts).cpu()
        return Observation(found, tuple(self._facts), self._samples)

    def _look(self, stack: Stack) -> None:
        norms = torch.stack([self._norms[name] for name in stack.names])
        self._parts.append(measure(stack, norms))
        rows, columns = stack.momentum.shape[-2:]
        target = target_rms(stack.group)
        self._facts += [Facts((rows, columns), stack.coefficients, target)] * len(stack.names)
        for number, name in enumerate(stack.names):
            if name in self._sampled:
                self._samples |= samples(stack, number)


def target_rms(group: Mapping[str, Any]) -> float | None:
    """0.2 where updates have the size of AdamW's, None where the scale aims at no size."""
    return 0.2 if group["adjust_lr_fn"] == "match_rms_adamw" else None


def samples(stack: Stack, number: int) -> dict[str, Tensor]:
    """Values for three histograms of one matrix, float32 on the host, by tag.

    log10 of the singular values of B and of U, relative to the largest of B and as they are; and
    |N| in units of the threshold, so that 1 is where clipping begins.

    Args:
        stack: From a hook.
        number: Of the matrix in it.
    """
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
        found[f"root/log10_sigma_{name}/{shape}"] = values.clamp(min=LEAST_SIGMA).log10().float()
    return {tag: values for tag, values in found.items() if bool(values.isfinite().all())}


def merged(observations: Sequence[Observation]) -> Observation:
    """One observation of several; of a matrix that is in several, the first counts."""
    names: list[tuple[str, int]] = []
    columns: list[Tensor] = []
    facts: list[Facts] = []
    samples: dict[str, Tensor] = {}
    for part in observations:
        if part.measurements is None:
            continue
        values = part.measurements.values
        known = set(names)
        new = [i for i, name in enumerate(part.measurements.names) if name not in known]
        names += [part.measurements.names[i] for i in new]
        columns.append(values[:, new])
        facts += [part.facts[i] for i in new]
        samples = {**part.samples, **samples}
    if not names:
        return Observation()
    return Observation(Measurements(tuple(names), torch.cat(columns, dim=1)), tuple(facts), samples)


def of_all_ranks(observation: Observation, world_size: int) -> Observation:
    """What any rank has seen, the same on all of them. A collective; free on one rank.

    Args:
        observation: Of this rank, empty if it saw nothing.
        world_size: Number of ranks, all of which must call this.
    """
    if world_size == 1:
        return observation
    everywhere = [Observation() for _ in range(world_size)]
    dist.all_gather_object(everywhere, observation)
    return merged(everywhere)
