"""Metrics over two processes: what one process would compute from all their matrices."""

from __future__ import annotations

import pytest
import torch

from lightning_root.diagnostics import (
    MomentumCosine,
    MomentumKurtosis,
    OrthogonalizationError,
    OutlierEnergy,
    OutlierFraction,
    UpdateRMS,
)
from lightning_root.functional import clip_outliers, newton_schulz
from tests.distributed.pool import GlooPool

KINDS = [
    OrthogonalizationError,
    UpdateRMS,
    MomentumCosine,
    OutlierFraction,
    OutlierEnergy,
    MomentumKurtosis,
]
REDUCTIONS = ["mean", "max", "min"]


def feed(metric: torch.nn.Module, rank: int) -> None:
    """Rank 0 has four matrices in two updates, rank 1 one of another size."""
    generator = torch.Generator().manual_seed(rank)
    for shape in [(3, 6, 9), (5, 5)] if rank == 0 else [(8, 12)]:
        momentum = torch.randn(shape, generator=generator).pow(3)
        clipped = clip_outliers(momentum, 0.8)
        update = newton_schulz(clipped, (3.4445, -4.775, 2.0315), 5)
        arguments = {
            OrthogonalizationError: [update],
            UpdateRMS: [update],
            MomentumCosine: [momentum, update],
            MomentumKurtosis: [momentum],
        }
        metric.update(*arguments.get(type(metric), [momentum, clipped]))


def computed(rank: int, world_size: int, ranks_with_data: list[int]) -> list[tuple[float, float]]:
    """For each metric and reduction: over all processes, and of this one alone."""
    values = []
    for kind in KINDS:
        for reduction in REDUCTIONS:
            metrics = kind(reduction=reduction), kind(reduction=reduction, sync_on_compute=False)
            for metric in metrics:
                if rank in ranks_with_data:
                    feed(metric, rank)
            values.append((float(metrics[0].compute()), float(metrics[1].compute())))
    return values


def alone(ranks: list[int]) -> list[float]:
    values = []
    for kind in KINDS:
        for reduction in REDUCTIONS:
            metric = kind(reduction=reduction)
            for rank in ranks:
                feed(metric, rank)
            values.append(float(metric.compute()))
    return values


def test_two_processes_compute_what_one_would(gloo_pool: GlooPool) -> None:
    answers = gloo_pool.run(computed, [0, 1])
    for rank, answer in enumerate(answers):
        assert [together for together, _ in answer] == pytest.approx(alone([0, 1]), rel=1e-6)
        assert [own for _, own in answer] == pytest.approx(alone([rank]), rel=1e-6)
    assert answers[0] != answers[1]


def test_a_process_without_matrices_does_not_count(gloo_pool: GlooPool) -> None:
    for answer in gloo_pool.run(computed, [0]):
        assert [together for together, _ in answer] == pytest.approx(alone([0]), rel=1e-6)
