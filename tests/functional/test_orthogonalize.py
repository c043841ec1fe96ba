"""Laws of the Newton-Schulz iteration, against scipy's polar decomposition and torch's SVD."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import polar

from lightning_root.coefficients.published import MUON, NEWTON_SCHULZ, PUBLISHED
from lightning_root.functional import as_schedule, newton_schulz, update_scale

POLAR_EXPRESS = PUBLISHED["polar_express"].triples

sizes = st.integers(1, 24)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_converges_to_scipys_polar_factor():
    matrix = gaussian(12, 30)
    expected = polar(matrix.numpy())[0]
    actual = newton_schulz(matrix, NEWTON_SCHULZ, steps=30).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (1, 9), (9, 1), (1, 1)])
@pytest.mark.parametrize("triples", [[MUON] * 5, list(POLAR_EXPRESS[:5])])
def test_maps_each_singular_value_by_the_polynomial_and_keeps_the_vectors(shape, triples):
    matrix = gaussian(*shape)
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    sigma = sigma / matrix.norm()
    for a, b, c in triples:
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    torch.testing.assert_close(
        newton_schulz(matrix, triples), u @ sigma.diag() @ vh, rtol=1e-9, atol=1e-9
    )


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, st.integers(0, 99))
def test_commutes_with_transposition(m, n, seed):
    matrix = gaussian(m, n, seed=seed)
    torch.testing.assert_close(
        newton_schulz(matrix.T, MUON, 5), newton_schulz(matrix, MUON, 5).T, rtol=1e-10, atol=1e-12
    )


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, st.integers(0, 99))
def test_commutes_with_rotations(m, n, seed):
    matrix = gaussian(m, n, seed=seed)
    left = torch.linalg.qr(gaussian(m, m, seed=seed + 1))[0]
    right = torch.linalg.qr(gaussian(n, n, seed=seed + 2))[0]
    torch.testing.assert_close(
        newton_schulz(left @ matrix @ right, MUON, 5),
        left @ newton_schulz(matrix, MUON, 5) @ right,
        rtol=1e-9,
        atol=1e-10,
    )


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, st.floats(-37, 37), st.integers(0, 99))
def test_does_not_depend_on_scale(m, n, exponent, seed):
    """Up to float32 rounding of the scaled input; entries stay in float32's normal range."""
    matrix = gaussian(m, n, seed=seed, dtype=torch.float32).clamp(-3, 3)
    matrix = torch.where(matrix.abs() < 0.1, matrix.sign() * 0.1, matrix)
    scaled = matrix * 10.0**exponent
    torch.testing.assert_close(
        newton_schulz(scaled, MUON, 5), newton_schulz(matrix, MUON, 5), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_gives_zero_and_the_input_is_not_touched(dtype):
    zero = torch.zeros(4, 6, dtype=dtype)
    assert newton_schulz(zero, MUON, 5).abs().max() == 0
    matrix = gaussian(4, 6).to(dtype)
    before = matrix.clone()
    result = newton_schulz(matrix, MUON, 5)
    assert torch.equal(matrix, before)
    assert result.dtype == dtype


def test_batches_are_the_matrices_one_by_one():
    stack = gaussian(2, 3, 6, 10)
    result = newton_schulz(stack, MUON, 5)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(
                result[i, j], newton_schulz(stack[i, j], MUON, 5), rtol=1e-12, atol=1e-12
            )


def test_a_stack_may_mix_zero_and_other_matrices():
    stack = torch.stack([torch.zeros(3, 5), gaussian(3, 5, dtype=torch.float32)])
    result = newton_schulz(stack, MUON, 5)
    assert result[0].abs().max() == 0
    assert result[1].norm() > 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_low_precision_iteration_stays_near_the_exact_one(dtype, tolerance):
    """Relative Frobenius error of 5 steps; half precision has 8 and 11 significant bits."""
    matrix = gaussian(64, 128, dtype=torch.float32)
    exact = newton_schulz(matrix, MUON, 5)
    rounded = newton_schulz(matrix, MUON, 5, dtype=dtype)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < tolerance


def test_float16_input_is_iterated_in_float32_unless_told_otherwise():
    matrix = gaussian(24, 40).half()
    triples = list(POLAR_EXPRESS[:5])
    assert torch.equal(
        newton_schulz(matrix, triples), newton_schulz(matrix.float(), triples).half()
    )
    assert not torch.equal(
        newton_schulz(matrix, triples), newton_schulz(matrix, triples, dtype=torch.float16)
    )


def test_float16_input_neither_overflows_nor_vanishes():
    for scale in (6e4, 6e-8):
        matrix = torch.full((8, 8), scale, dtype=torch.float16)
        result = newton_schulz(matrix, NEWTON_SCHULZ, 20)
        torch.testing.assert_close(
            result, torch.full((8, 8), 1 / 8, dtype=torch.float16), rtol=2e-3, atol=0
        )


def test_empty_matrices_pass_through():
    assert newton_schulz(torch.zeros(0, 4), MUON, 5).shape == (0, 4)
    assert newton_schulz(torch.zeros(2, 3, 0), MUON, 5).shape == (2, 3, 0)


def test_a_single_triple_is_repeated():
    assert as_schedule(MUON, 3) == (MUON, MUON, MUON)
    assert as_schedule([MUON, NEWTON_SCHULZ]) == (MUON, NEWTON_SCHULZ)


@pytest.mark.parametrize(
    ("coefficients", "steps", "message"),
    [
        (MUON, None, "`steps` is required"),
        (MUON, 0, "`steps` must be a whole number >= 1, got 0"),
        (MUON, True, "`steps` must be a whole number >= 1, got True"),
        ([MUON, MUON], 3, "`coefficients` holds 2 triples.* `steps` is 3"),
        ([(1.0, 2.0)], None, "triples .* of finite numbers"),
        ((1.0, float("nan"), 2.0), 5, "triples .* of finite numbers"),
        ([], None, "at least one triple"),
    ],
)
def test_bad_coefficients_are_named(coefficients, steps, message):
    with pytest.raises(ValueError, match=message):
        newton_schulz(torch.ones(2, 2), coefficients, steps)


def test_bad_matrices_are_named():
    with pytest.raises(ValueError, match="`matrix` must have at least 2 dimensions"):
        newton_schulz(torch.ones(3), MUON, 5)
    with pytest.raises(TypeError, match="`matrix` must be a floating point tensor"):
        newton_schulz(torch.ones(3, 3, dtype=torch.int64), MUON, 5)


def test_one_step_is_one_polynomial():
    matrix = gaussian(6, 10)
    u, sigma, vh = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    a, b, c = MUON
    expected = u @ (a * sigma + b * sigma**3 + c * sigma**5).diag() @ vh
    torch.testing.assert_close(newton_schulz(matrix, MUON, 1), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_infinite_coefficients_are_named(place):
    triple = [1.0, 1.0, 1.0]
    triple[place] = float("inf")
    with pytest.raises(ValueError, match=r"triples .* of finite numbers, got .*inf"):
        as_schedule(triple, 5)


@pytest.mark.parametrize(("rows", "columns"), [(6, 6), (20, 45), (45, 20)])
def test_the_scale_gives_the_stated_root_mean_square(rows, columns):
    """Of an exactly orthogonal update, by scipy; and Jordan's rule, by its formula."""
    update = polar(gaussian(rows, columns).numpy())[0]
    size = update_scale(rows, columns, "match_rms_adamw") * np.sqrt(np.mean(update**2))
    assert size == pytest.approx(0.2, rel=1e-12)
    for name in ("original", None):
        assert update_scale(rows, columns, name) == max(1, rows / columns) ** 0.5
    size = update_scale(rows, columns, "spectral_unclamped") * np.linalg.norm(update, 2)
    assert size == pytest.approx(np.sqrt(rows / columns))


def test_an_unknown_scale_is_named():
    with pytest.raises(ValueError, match=r"`adjust_lr_fn` must be one of .*got 'adam'"):
        update_scale(2, 3, "adam")
