"""`outlier_quantile="auto"` in the optimizer: where it acts, and that it remembers nothing."""

import copy

import pytest
import torch

from lightning_root import ROOT
from lightning_root.functional import automatic_quantile, clip_outliers, outlier_fraction
from lightning_root.optim import Stack
from lightning_root.optim.stages.clip import bounds_by_kernels


def gradient(t: int, outliers: bool) -> torch.Tensor:
    """A sum of outer products, with or without entries that stand alone."""
    generator = torch.Generator().manual_seed(t)
    matrix = torch.randn(24, 6, generator=generator) @ torch.randn(6, 40, generator=generator)
    if outliers:
        matrix[torch.rand(24, 40, generator=generator) < 0.01] = 50.0
    return matrix


def optimizer_of(weights, quantile):
    return ROOT([{"role": "root", "params": weights, "outlier_quantile": quantile}], lr=0.1)


def weights_of(count=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(24, 40, generator=generator)) for _ in range(count)]


def train(optimizer, steps, start=0, outliers=(False, True)):
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for t in range(start, start + steps):
        for weight, noisy in zip(weights, outliers, strict=True):
            weight.grad = gradient(t, noisy)
        optimizer.step()


def test_without_outliers_it_is_the_step_without_a_threshold():
    automatic, plain = weights_of(), weights_of()
    train(optimizer_of(automatic, "auto"), 4, outliers=(False, False))
    train(optimizer_of(plain, None), 4, outliers=(False, False))
    assert all(torch.equal(a, b) for a, b in zip(automatic, plain, strict=True))


def test_of_two_matrices_in_one_stack_only_the_one_with_outliers_is_clipped():
    seen: list[Stack] = []
    optimizer = optimizer_of(weights_of(), "auto")
    optimizer.register_stack_hook(seen.append)
    train(optimizer, 3)
    for stack in seen:
        assert torch.equal(stack.clipped, clip_outliers(stack.momentum, "auto"))
        clean, noisy = outlier_fraction(stack.momentum, stack.clipped).tolist()
        assert clean == 0.0
        assert 0.02 < noisy < 0.2001


def test_it_is_an_option_of_each_group_and_a_resumed_run_goes_on_as_before():
    weights = weights_of()
    optimizer = ROOT(
        [
            {"role": "root", "params": weights[:1], "name": "first", "outlier_quantile": "auto"},
            {"role": "root", "params": weights[1:], "name": "second"},
        ],
        lr=0.1,
    )
    train(optimizer, 2, outliers=(True, True))
    copies = copy.deepcopy(weights)
    resumed = ROOT(
        [
            {"role": "root", "params": copies[:1], "name": "first"},
            {"role": "root", "params": copies[1:], "name": "second"},
        ]
    )
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["outlier_quantile"] for group in resumed.param_groups] == ["auto", 0.9]
    for one in (optimizer, resumed):
        train(one, 3, start=2, outliers=(True, True))
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))


@pytest.mark.parametrize(
    ("quantile", "mode"), [(0.9, "exact"), ("auto", "exact"), ("auto", "auto")]
)
def test_beside_kernels_what_must_be_exact_is_not_sampled(quantile, mode):
    """Of 2^18 entries, far more than a sample has; the oracle is torch's quantile."""
    matrix = torch.randn(1, 256, 1024, generator=torch.Generator().manual_seed(0)) ** 3
    group = {"outlier_quantile": quantile, "outlier_quantile_mode": mode}
    p = float(automatic_quantile(matrix)) if quantile == "auto" else quantile
    found = bounds_by_kernels(matrix, matrix.abs().amax((1, 2)), group)
    torch.testing.assert_close(found[0], matrix.abs().double().flatten().quantile(p).float())
