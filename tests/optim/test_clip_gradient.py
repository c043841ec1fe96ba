"""Entries of the gradient that are clipped before the momentum (`gradient_clip_entries`)."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_root import ROOT
from lightning_root.optim.stages.clip_gradient import KEY, clip_entries_, clip_gradient_twin
from tests.optim.test_normalize import RULES, SHAPES, SLICES, gradients, parameters

SEEDS = st.integers(0, 2**31)
SIZES = st.integers(1, 9)


def heavy(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).pow(3).to(dtype)


@settings(deadline=None, max_examples=60)
@given(SIZES, SIZES, st.floats(0.2, 8.0), SEEDS, st.integers(-25, 25))
def test_it_follows_its_formula(m, n, limit, seed, power):
    """Whatever the size of the gradients: a power of ten changes nothing but the size."""
    state, rows, columns = (
        torch.zeros(m + n).double(),
        torch.zeros(m).double(),
        torch.zeros(n).double(),
    )
    for step in range(4):
        gradient = heavy(m, n, seed=seed + step)
        found = gradient * 10.0**power
        clip_entries_(found, state, limit)
        expected, rows, columns = clip_gradient_twin(gradient, rows, columns, limit)
        torch.testing.assert_close(found / 10.0**power, expected)
        means = torch.cat([rows, columns]).sqrt()
        torch.testing.assert_close(state / 10.0**power, means, rtol=1e-6, atol=1e-12)


def test_an_outlier_is_held_and_the_rest_is_left():
    state = torch.zeros(30)
    for seed in range(20):
        clip_entries_(
            torch.randn(10, 20, generator=torch.Generator().manual_seed(seed)), state, 4.0
        )
    gradient = torch.randn(10, 20, generator=torch.Generator().manual_seed(99)).clamp_(-2, 2)
    given = gradient.clone()
    given[3, 4] = 1e6
    clip_entries_(given, state, 4.0)
    assert 2 < given[3, 4] < 8
    given[3, 4] = gradient[3, 4]
    assert torch.equal(given, gradient)


def test_a_row_without_gradients_so_far_can_begin():
    state = torch.zeros(12)
    for seed in range(5):
        gradient = heavy(4, 8, seed=seed, dtype=torch.float32)
        gradient[0] = 0
        clip_entries_(gradient, state, 4.0)
    assert state[0] == 0
    for seed in range(200):
        gradient = heavy(4, 8, seed=seed, dtype=torch.float32)
        clip_entries_(gradient, state, 4.0)
    assert state[0] > 0.3 * state[1:4].mean()


@pytest.mark.parametrize("scale", [1e36, 1e-36, 0.0])
def test_no_size_of_gradients_overflows_or_vanishes(scale):
    state = torch.zeros(9)
    for seed in range(6):
        gradient = heavy(4, 5, seed=seed, dtype=torch.float32).clamp_(-9, 9) * scale
        clip_entries_(gradient, state, 4.0)
        assert gradient.isfinite().all() and state.isfinite().all()
    assert bool((state > 0).all()) == (scale > 0)


@pytest.mark.parametrize("options", [{}, {"momentum_dtype": "float8"}, {"nesterov": False}])
def test_the_optimizer_clips_every_matrix_by_itself(options):
    """As if its gradients had been clipped outside, matrix by matrix."""
    rules = {"rules": RULES, "lr": 0.02, **options}
    ours, twins = parameters(torch.float32), parameters(torch.float32)
    clipping = ROOT(list(ours.items()), gradient_clip_entries=2.0, **rules)
    plain = ROOT(list(twins.items()), **rules)
    state = {}
    for step in range(5):
        for name, gradient in gradients(step).items():
            ours[name].grad = gradient.float()
            clipped = gradient.float().clone()
            for number, place in enumerate(SLICES.get(name, [...])):
                matrix = clipped[place].reshape(len(clipped[place]), -1).clone()
                own = state.setdefault((name, number), torch.zeros(sum(matrix.shape)))
                clip_entries_(matrix, own, 2.0)
                clipped[place] = matrix.view_as(clipped[place])
            twins[name].grad = clipped
        given = {name: parameter.grad.clone() for name, parameter in ours.items()}
        clipping.step()
        plain.step()
        assert all(torch.equal(ours[name].grad, given[name]) for name in ours)
    for name in SHAPES:
        assert torch.equal(ours[name], twins[name]), name


def test_a_resumed_run_goes_on_bit_for_bit():
    weights = parameters(torch.float32)
    optimizer = ROOT(list(weights.items()), rules=RULES, lr=0.02, gradient_clip_entries=2.0)

    def run(own, each, steps):
        for step in steps:
            for name, gradient in gradients(step).items():
                own[name].grad = gradient.float()
            each.step()

    run(weights, optimizer, range(3))
    others = copy.deepcopy(weights)
    loaded = ROOT(list(others.items()), rules=RULES, lr=0.02, gradient_clip_entries=2.0)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(weights, optimizer, range(3, 6))
    run(others, loaded, range(3, 6))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_with_capturable_a_gradient_that_is_not_finite_leaves_the_means_alone():
    weight = nn.Parameter(torch.randn(4, 6))
    group = {"params": [("w", weight)], "role": "root"}
    optimizer = ROOT([group], capturable=True, gradient_clip_entries=4.0)
    weight.grad = torch.randn(4, 6)
    optimizer.step()
    before, value = optimizer.state[weight][KEY].clone(), weight.detach().clone()
    weight.grad = torch.full((4, 6), float("nan"))
    optimizer.step()
    assert torch.equal(optimizer.state[weight][KEY], before)
    assert torch.equal(weight, value)
