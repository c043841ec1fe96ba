"""Gradients with outliers, injected at a known rate: the noise that ROOT's threshold is made for.

`configs/noise/gradient_outliers.yaml` adds it to a run. To look at the options:

    python -m lightning_root fit --trainer.callbacks.help examples.noise.GradientOutliers
"""

import math

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from examples.batches import generator_of
from lightning_root import partition_parameters
from lightning_root.partition.names import canonical


def outlier_positions(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Choose entries of a tensor, each with probability `rate` and apart from all others.

    Throwing a Poisson number of darts, of mean -count log(1 - rate), at uniform positions hits an
    entry with probability `rate`, independently of the others, and costs as much as there are hits.

    Args:
        count: Entries of the tensor.
        rate: In [0, 1).
        generator: Where the random numbers come from.

    Returns:
        Distinct positions in [0, count), sorted, int64.
    """
    mean = torch.tensor(-count * math.log1p(-rate), dtype=torch.float64)
    darts = int(torch.poisson(mean, generator))
    return torch.randint(count, (darts,), generator=generator).unique()


def add_outliers_(gradient: Tensor, rate: float, size: float, generator: torch.Generator) -> None:
    """Replace entries of a gradient, in place, by outliers of random sign.

    Args:
        gradient: Any shape. Of a DTensor every rank draws for the whole and keeps its shard.
        rate: Probability of each entry to be replaced, in [0, 1).
        size: Magnitude of the outliers as a multiple of the largest entry's.
        generator: Where the random numbers come from; on the CPU, so that all devices agree.
    """
    whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    positions = outlier_positions(whole.numel(), rate, generator)
    signs = 2 * torch.randint(2, positions.shape, generator=generator) - 1
    outliers = size * whole.abs().max() * signs.to(whole)
    flat = whole.flatten().index_copy(0, positions.to(whole.device), outliers)
    replaced = flat.view(whole.shape)
    if isinstance(gradient, DTensor):
        mesh, placements = gradient.device_mesh, gradient.placements
        replaced = distribute_tensor(replaced, mesh, placements, src_data_rank=None)
    gradient.copy_(replaced)


class GradientOutliers(L.Callback):
    """Replaces a share of the gradients' entries by outliers, before every optimizer step.

    It acts in `on_before_optimizer_step`: once per step, after the gradients of all micro-batches
    and ranks have been added up and, under a scaler, unscaled, and before they are clipped. What
    it draws depends on (seed, step, parameter name) alone: it is the same on all ranks and for
    every optimizer, and a resumed run goes on with the very same noise.

    Args:
        rate: Probability of each entry to be replaced, in [0, 1).
        size: Magnitude of the outliers, as a multiple of the largest entry's of the same gradient.
        seed: Another seed, other entries and signs.
        start_step: Steps that stay clean at the beginning.
        all_parameters: Disturb every gradient; otherwise those of the hidden matrices, which
            `partition_parameters` gives to ROOT, whatever optimizer the run has.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        rate: float = 0.001,
        size: float = 3.0,
        seed: int = 0,
        start_step: int = 0,
        all_parameters: bool = False,
    ) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be in [0, 1), got {rate}; 0.001 is one in a thousand")
        if not 0 <= size < math.inf:
            raise ValueError(
                f"`size` must be finite and >= 0, got {size}; 3 is three times the largest entry"
            )
        if start_step < 0:
            raise ValueError(f"`start_step` must be >= 0, got {start_step}; 0 disturbs every step")
        self.rate, self.size, self.seed = rate, size, seed
        self.start_step, self.all_parameters = start_step, all_parameters
        self.hidden: set[str] = set()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look up the hidden matrices by name: sharding replaces the parameters themselves."""
        routes = partition_parameters(pl_module).routes
        self.hidden = {route.name for route in routes if route.role == "root"}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Disturb the gradients that the optimizer is about to use."""
        step = trainer.global_step
        if step < self.start_step:
            return
        for own_name, parameter in pl_module.named_parameters():
            name = canonical(own_name)
            if parameter.grad is not None and (self.all_parameters or name in self.hidden):
                generator = generator_of(self.seed, step, name)
                add_outliers_(parameter.grad, self.rate, self.size, generator)
