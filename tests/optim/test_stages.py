"""Each stage of a step does what its plain twin does, and its twin what the textbook says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_root import ROOT
from lightning_root.functional import newton_schulz
from lightning_root.kernels.forms import orthogonalize_by
from lightning_root.optim.blocks import BlockStep
from lightning_root.optim.stages import precondition
from lightning_root.optim.stages.apply import apply_twin, apply_update_
from lightning_root.optim.stages.clip import clip_twin, plan_clip
from lightning_root.optim.stages.momentum import look_ahead, momentum_twin
from lightning_root.optim.stages.normalize import BETA, KEY, normalize, normalize_twin
from tests.reference.precondition import preconditioned

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 12)


def random(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).pow(3).to(dtype)


@settings(deadline=None, max_examples=50)
@given(SIZES, SIZES, st.floats(0.0, 0.999), st.booleans(), st.booleans(), SEEDS)
def test_momentum(m, n, mu, nesterov, maximize, seed):
    gradients, momenta = random(3, m, n, seed=seed), random(3, m, n, seed=seed + 1)
    group = {"momentum": mu, "nesterov": nesterov, "maximize": maximize}
    steps = [
        BlockStep(None, g, b.clone(), b, None, {}) for g, b in zip(gradients, momenta, strict=True)
    ]
    found = look_ahead(steps, torch.float64, group)
    signed = -gradients if maximize else gradients
    for number, (g, b) in enumerate(zip(signed, momenta, strict=True)):
        momentum, direction = momentum_twin(g, b, mu, nesterov)
        torch.testing.assert_close(steps[number].momentum, momentum)
        torch.testing.assert_close(found[number], direction)


def test_momentum_is_that_of_torchs_sgd():
    """Without dampening; its look-ahead is ours."""
    for nesterov in (False, True):
        weight = nn.Parameter(torch.zeros(4, 5, dtype=torch.float64))
        sgd = torch.optim.SGD([weight], lr=1.0, momentum=0.9, nesterov=nesterov)
        momentum = torch.zeros(4, 5, dtype=torch.float64)
        for step in range(4):
            weight.grad, before = random(4, 5, seed=step), weight.detach().clone()
            momentum, direction = momentum_twin(weight.grad, momentum, 0.9, nesterov)
            sgd.step()
            torch.testing.assert_close(before - weight.detach(), direction)


@settings(deadline=None, max_examples=50)
@given(SIZES, SIZES, st.floats(0.01, 1.0), SEEDS)
def test_clip(m, n, quantile, seed):
    """The paper subtracts what exceeds the threshold; what is computed is a clamp."""
    directions = random(2, m, n, seed=seed)
    clip = plan_clip({"outlier_quantile": quantile, "outlier_quantile_mode": "exact"})
    found, bounds = clip(directions.clone(), keep=True)
    for number, direction in enumerate(directions):
        torch.testing.assert_close(found[number], clip_twin(direction, quantile))
        torch.testing.assert_close(found[number].abs().max(), bounds[number])


def test_nothing_is_clipped_without_a_quantile():
    assert plan_clip({"outlier_quantile": None, "outlier_quantile_mode": "auto"}) is None


@settings(deadline=None, max_examples=50)
@given(
    st.integers(2, 9),
    st.integers(2, 9),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.floats(0.0, 0.99),
    SEEDS,
)
def test_precondition(m, n, exponent, beta, seed):
    """Three steps of two matrices, up to a factor that orthogonalization does not see."""
    group = {
        "precondition": "covariance",
        "precondition_sides": "both",
        "precondition_max_dim": 9,
        "precondition_exponent": exponent,
        "precondition_beta": beta,
        "precondition_damping": 1e-4,
        "precondition_statistics_every": None,
    }
    how = precondition.plan_preconditioner((m, n), group)
    state = [{precondition.KEY: torch.zeros(how.numbers).double()} for _ in range(2)]
    twins = [[torch.zeros(m, m).double(), torch.zeros(n, n).double()] for _ in range(2)]
    textbooks = [{} for _ in range(2)]
    for step in range(3):
        bases, gradients = random(2, m, n, seed=seed + step), random(2, m, n, seed=seed - step - 1)
        before = bases.clone()
        found = precondition.precondition(bases, gradients, how, state, True)
        assert torch.equal(bases, before)
        for i in range(2):
            expected, twins[i] = precondition.precondition_twin(
                bases[i], gradients[i], twins[i], beta, 1e-4, exponent
            )
            options = {"beta": beta, "damping": 1e-4, "exponent": exponent}
            textbook = preconditioned(
                bases[i],
                gradients[i],
                textbooks[i],
                method="covariance",
                sides=(0, 1),
                every=1,
                **options,
            )
            torch.testing.assert_close(expected, textbook, rtol=1e-6, atol=1e-6)
            factor = found[i].norm() / expected.norm()
            torch.testing.assert_close(found[i], factor * expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["standard", "gram", "eigh"])
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalize(form, shape):
    matrices, triples = random(3, *shape, seed=0), [(3.4445, -4.7750, 2.0315)] * 5
    found = orthogonalize_by(matrices, triples, form=form, dtype=torch.float64)
    torch.testing.assert_close(found, newton_schulz(matrices, triples), atol=1e-9, rtol=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 12), st.integers(2, 12), SEEDS)
def test_normalize(m, n, seed):
    updates = random(2, m, n, seed=seed)
    moments = random(2, max(m, n), seed=seed + 1).square() + 1e-3
    state = [{KEY: moment.clone()} for moment in moments]
    found = normalize(updates, state, m >= n, [None, None])
    for number, update in enumerate(updates):
        expected, moment = normalize_twin(update, moments[number])
        torch.testing.assert_close(found[number], expected)
        torch.testing.assert_close(state[number][KEY], moment)
        torch.testing.assert_close(found[number].norm(), update.norm())


def test_what_is_normalized_again_and_again_has_equal_neurons():
    """Of one update repeated v tends to its mean squares, and every neuron to one size."""
    update = random(1, 7, 4, seed=0)
    state = [{KEY: torch.zeros(7, dtype=torch.float64)}]
    for _ in range(400):
        found = normalize(update, state, True, [None])
    sizes = found[0].norm(dim=1)
    torch.testing.assert_close(sizes, sizes.mean().expand(7))
    torch.testing.assert_close(state[0][KEY], update[0].square().mean(1) * (1 - BETA**400))


@settings(deadline=None, max_examples=50)
@given(SIZES, SIZES, st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.1, 10.0), SEEDS)
def test_apply(m, n, lr, decay, scale, seed):
    values, updates = random(3, m, n, seed=seed), random(3, m, n, seed=seed + 1)
    targets = [value.clone() for value in values]
    apply_update_(
        targets,
        list(updates),
        scale,
        {"lr": lr, "weight_decay": decay, "weight_decay_mode": "decoupled"},
    )
    for target, value, update in zip(targets, values, updates, strict=True):
        torch.testing.assert_close(target, apply_twin(value, update, lr, decay, scale))


def test_decay_is_that_of_torchs_adamw():
    """Where nothing else moves a weight."""
    weights = [nn.Parameter(random(4, 5, seed=0)) for _ in range(2)]
    adamw = torch.optim.AdamW(weights[:1], lr=0.1, weight_decay=0.3)
    root = ROOT([{"params": weights[1:], "role": "root"}], lr=0.1, weight_decay=0.3)
    for optimizer, weight in zip((adamw, root), weights, strict=True):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    torch.testing.assert_close(*weights)
