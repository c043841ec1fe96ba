"""Momentum kept in 8 bits: a quarter of the bytes, rounded so that nothing is lost on average."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_root.kernels.rounding import BLOCK
from lightning_root.optim.low_precision import (
    float8_decoded,
    float8_encoded,
    float8_size,
    float8_zeros,
)
from lightning_root.optim.stages.momentum import momentum_step_float8_
from tests.optim.rounding import fits_the_distance

PLAIN = {"momentum": 0.95, "nesterov": True, "maximize": False}


def rounded(value):
    return float8_decoded(float8_encoded(value)).float().view(value.shape)


def every_magnitude():
    """e3m4 as IEEE 754 defines binary formats, with bias 6: subnormals, then 1.mmmm x 2^(e - 6)."""
    subnormal = [m / 16 * 2.0**-5 for m in range(16)]
    normal = [(1 + m / 16) * 2.0 ** (e - 6) for e in range(1, 8) for m in range(16)]
    return torch.tensor(subnormal + normal)


def neighbours(value):
    """The two magnitudes around each entry, where 2^e < largest entry of a block <= 2^(e + 1)."""
    scale = torch.exp2(torch.log2(value.double().abs().amax(-1, keepdim=True)).ceil() - 1).float()
    every = every_magnitude()
    place = torch.searchsorted(every, (value / scale).abs(), right=True) - 1
    return every[place] * scale, every[place + 1] * scale


@pytest.mark.parametrize("power", [0, -90, 90])
def test_a_value_goes_to_one_of_its_two_neighbours(power):
    """With tails of all sizes, so that the even spacing below the smallest exponent is met too."""
    value = torch.randn(500, BLOCK).pow(7) * 2.0**power
    low, high = neighbours(value)
    result = rounded(value)
    assert ((result.abs() == low) | (result.abs() == high)).all()
    assert (result.sign() * value.sign() >= 0).all()


@pytest.mark.parametrize("upper", [2.0, 2.0**-5, 2.0**-9])
def test_it_goes_up_as_often_as_it_is_near_to_the_upper_one(upper):
    value = torch.rand(4000, BLOCK) * upper
    value[:, 0] = 1.9
    low, high = neighbours(value)
    distance = ((value - low) / (high - low)).double()[:, 1:]
    up = (rounded(value) == high)[:, 1:]
    assert fits_the_distance(distance, up) > 1e-3


@settings(max_examples=200, deadline=None)
@given(
    entries=st.integers(0, 700),
    power=st.integers(-100, 120),
    tail=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_what_was_read_is_written_back_to_the_same_values(entries, power, tail, seed):
    """So a saved run goes on exactly, whatever the length of the last block."""
    generator = torch.Generator().manual_seed(seed)
    value = (torch.randn(entries, generator=generator).pow(tail) * 2.0**power).clamp(-3e38, 3e38)
    once = float8_encoded(value)
    assert float8_size(once) == entries
    assert once.numel() == entries + -(-entries // BLOCK)
    assert torch.equal(float8_decoded(float8_encoded(float8_decoded(once))), float8_decoded(once))


def test_zero_stays_zero_and_the_largest_stays_large():
    assert not float8_decoded(float8_encoded(torch.zeros(3, 200))).any()
    extremes = torch.tensor([torch.finfo(torch.float32).max, -3e38, 0.0, 1e-45])
    torch.testing.assert_close(rounded(extremes), extremes, rtol=0.07, atol=1e-30)


@pytest.mark.parametrize("entries", [1, BLOCK - 1, BLOCK, BLOCK + 1, 70_000])
@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"maximize": True}], ids=str)
def test_the_look_ahead_is_that_of_what_is_kept(entries, options):
    """N = G + mu (mu M + G), computed before M is rounded."""
    group = {**PLAIN, **options}
    before, gradient = torch.randn(entries), torch.randn(entries)
    buffer = float8_encoded(before)
    exact = 0.95 * float8_decoded(buffer).float() + (-gradient if group["maximize"] else gradient)
    out, step = torch.empty(entries), torch.zeros(())
    momentum_step_float8_(gradient, buffer, step, out, group)
    ahead = (-gradient if group["maximize"] else gradient) + 0.95 * exact
    torch.testing.assert_close(out, ahead if group["nesterov"] else exact)
    assert step == 1
    largest = torch.nn.functional.pad(exact.abs(), (0, -entries % BLOCK)).view(-1, BLOCK).amax(1)
    spacing = torch.maximum(
        exact.abs() / 16, largest.repeat_interleave(BLOCK)[:entries] * 2.0**-9
    )  # at most
    assert ((float8_decoded(buffer).float() - exact).abs() <= spacing).all()


def run(gradient, start, momentum, steps):
    buffer, step = float8_encoded(start), torch.zeros(())
    out = torch.empty_like(start)
    for _ in range(steps):
        momentum_step_float8_(gradient, buffer, step, out, {**PLAIN, "momentum": momentum})
    return float8_decoded(buffer).double()


@pytest.mark.parametrize(("momentum", "steps"), [(0.9, 40), (0.95, 60), (0.99, 300)])
def test_momentum_without_gradients_decays_by_mu(momentum, steps):
    """A hash that is linear in the bits and the step gave 0.2, 1.6 and 0.07 of it."""
    start = torch.rand(1 << 15) + 0.5
    end = run(torch.zeros_like(start), start, momentum, steps)
    expected = float(rounded(start).double().mean()) * momentum**steps
    assert float(end.mean()) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("momentum", [0.9, 0.99])
def test_equal_gradients_add_up_to_their_multiple(momentum):
    """Each adds as little as a hundredth, under the spacing of 3 to 6 %."""
    gradient = torch.randn(1 << 15, generator=torch.Generator().manual_seed(0))
    end = run(gradient, torch.zeros_like(gradient), momentum, 400)
    expected = gradient.double() * (1 - momentum**400) / (1 - momentum)
    slope = float((end * expected).sum() / expected.square().sum())
    assert slope == pytest.approx(1.0, abs=0.005)


def test_an_entry_without_a_gradient_does_not_stay_where_it_is():
    """Among neighbours that keep the block's exponent where it is."""
    start = torch.ones(64, BLOCK) * torch.linspace(0.5, 1.9, BLOCK)
    gradient = torch.zeros_like(start)
    gradient[:, -1] = 0.05 * start[:, -1]
    end = run(gradient.flatten(), start.flatten(), 0.95, 400).view(64, BLOCK)
    assert float(end[:, :-1].abs().max()) < 1e-3
    assert float(end[:, -1].mean()) == pytest.approx(1.9, rel=0.05)


def test_a_gradient_that_is_not_finite_leaves_it_as_it_is():
    buffer, step = float8_encoded(torch.randn(1000)), torch.full((), 7.0)
    before, out = float8_decoded(buffer), torch.empty(1000)
    bad = torch.full((1000,), float("nan"))
    momentum_step_float8_(bad, buffer, step, out, PLAIN, torch.tensor(False))
    assert torch.equal(float8_decoded(buffer), before)
    assert step == 7
    assert out.isfinite().all()


def test_it_takes_a_byte_for_an_entry_and_one_for_a_block():
    assert float8_zeros(torch.empty(768, 3072)).numel() == 768 * 3072 * (BLOCK + 1) // BLOCK
    assert float8_zeros(torch.empty(3, 50)).dtype == torch.uint8
