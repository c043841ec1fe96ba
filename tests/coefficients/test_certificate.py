"""The certificate is the exact range: against dense sampling, and against known instabilities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_root.coefficients import bfloat16_error, lookup, output_range, stable_input
from lightning_root.coefficients.published import AUTHORS_SCRIPT, MUON, TABLE_1

number = st.floats(-6, 6, allow_nan=False)
triples = st.lists(st.tuples(number, number, number), min_size=1, max_size=3)


def sampled(schedule, points):
    x = points
    for a, b, c in schedule:
        x = x * (a + x**2 * (b + x**2 * c))
    return x.min(), x.max()


@settings(max_examples=200, deadline=None)
@given(triples, st.floats(0.1, 1.2))
def test_contains_and_touches_every_sampled_output(schedule, upper):
    low, high = output_range(schedule, upper=upper)
    sample_low, sample_high = sampled(schedule, np.linspace(0, upper, 200_001))
    if max(-low, high) > 1e6:
        return  # too steep for sampling to come near the extremes
    slack = 1e-9 * max(1.0, -low, high)
    assert low - slack <= sample_low
    assert sample_high <= high + slack
    reach = 1e-3 * max(1.0, high - low)
    assert abs(sample_low - low) < reach
    assert abs(sample_high - high) < reach


def test_the_published_square_triple_is_unstable():
    triple = AUTHORS_SCRIPT[2048, 2048]
    assert output_range([triple] * 5)[1] == pytest.approx(3.31, abs=0.01)
    assert output_range([triple] * 6)[1] == pytest.approx(679, rel=0.01)
    assert output_range([triple] * 7)[1] > 1e14


def test_the_other_published_triples_are_bounded_at_any_length():
    others = [triple for shape, triple in AUTHORS_SCRIPT.items() if shape != (2048, 2048)]
    table_1 = [triple for shape, triple in TABLE_1.items() if shape != (2048, 16384)]
    for triple in [*others, *table_1, MUON]:
        assert all(output_range([triple] * steps)[1] <= 1.24 for steps in range(1, 40))


def test_the_widest_triple_of_table_1_is_bounded_at_its_own_5_steps_only():
    """It creeps past its repelling fixed point: 2.1 after 10 steps, overflow later."""
    triple = TABLE_1[2048, 16384]
    assert output_range([triple] * 5)[1] <= 1.07
    assert output_range([triple] * 10)[1] > 2
    assert output_range([triple] * 39)[1] == np.inf


def test_overflow_is_infinite():
    assert output_range([(100.0, 100.0, 100.0)] * 60) == (-np.inf, np.inf)
    # Infinity times the third number, which is zero, is not a number.
    assert output_range([(1.5, -0.5, 0.0)], upper=1e200) == (-np.inf, np.inf)


@settings(max_examples=200, deadline=None)
@given(triples)
def test_inputs_are_stable_up_to_the_stated_one_and_not_beyond(schedule):
    limit = stable_input(schedule, bound=2.0)
    low, high = sampled(schedule, np.linspace(0, limit, 20_001))
    assert max(-low, high) <= 2.0 + 1e-9
    if limit < 10:
        # where the composition first leaves [-2, 2], it does so within any margin
        low, high = output_range(schedule, upper=limit * (1 + 1e-9) + 1e-12)
        assert max(-low, high) >= 2.0 - 1e-6


def test_known_stable_inputs():
    """x (3 - x^2) / 2 = -2 at the root of x^3 - 3 x - 4; Muon's repelling fixed point."""
    (root,) = (r.real for r in np.roots([1, 0, -3, -4]) if abs(r.imag) < 1e-12)
    assert stable_input([(1.5, -0.5, 0.0)]) == pytest.approx(root)
    a, b, c = MUON
    fixed = max(r.real for r in np.roots([c, 0, b, 0, a - 1, 0]) if abs(r.imag) < 1e-12)
    assert stable_input([MUON] * 60) == pytest.approx(fixed, rel=1e-6)


@pytest.mark.parametrize("name", ["adaptive", "muon", "paper"])
def test_bfloat16_error_is_that_of_a_matrix_iteration(name):
    """Against an SVD of an iteration written out here, on another matrix of the same kind."""
    triples = lookup((64, 96), name).triples
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(96, 64, generator=generator, dtype=torch.float64))[0]
    sigma = torch.logspace(-3, 0, 64, dtype=torch.float64)
    exact = (left * (sigma / sigma.norm())) @ right.T
    x = exact.bfloat16()
    for a, b, c in triples:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
        u, s, v = torch.linalg.svd(exact, full_matrices=False)
        exact = (u * (a * s + b * s**3 + c * s**5)) @ v
    expected = (x.double() - exact).norm().item() / 8
    assert bfloat16_error(triples) == pytest.approx(expected, rel=0.5)
    assert 1e-3 < bfloat16_error(triples) < 0.1
