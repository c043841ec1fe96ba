"""Laws of the orthogonalization error and of the range of singular values, against scipy's SVD."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.linalg import svdvals

from lightning_root.coefficients.published import MUON, PUBLISHED
from lightning_root.functional import (
    matrices,
    newton_schulz,
    orthogonalization_error,
    singular_value_range,
    spectrum,
)
from lightning_root.functional.matrices import magnitude

POLAR_EXPRESS = PUBLISHED["polar_express"].triples

sizes = st.integers(1, 24)
seeds = st.integers(0, 99)
exponents = st.integers(-30, 30)  # of the scale, in float32


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_singular_values(sigma, n, seed=0):
    """A float64 matrix (m, n), m <= n, of given singular values and random singular vectors."""
    m = len(sigma)
    left = torch.linalg.qr(gaussian(m, m, seed=seed))[0]
    right = torch.linalg.qr(gaussian(n, m, seed=seed + 1))[0]
    return left @ torch.as_tensor(sigma, dtype=torch.float64).diag() @ right.T


def error_by_svd(matrix):
    return float(np.mean((svdvals(matrix.double().numpy()) - 1) ** 2))


def by_lanczos(update):
    """What an accelerator computes, whatever the size."""
    return spectrum._by_lanczos(spectrum._scaled_gram(update, magnitude(update)))


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, st.integers(-3, 3), seeds)
def test_exact_error_is_that_of_scipys_singular_values(m, n, exponent, seed):
    matrix = gaussian(m, n, seed=seed) * 10.0**exponent
    actual = orthogonalization_error(matrix, exact=True)
    assert float(actual) == pytest.approx(error_by_svd(matrix), rel=1e-7)


@settings(max_examples=200, deadline=None)
@example([0.03125], 0, 0)
@example([1 / 128], 3, 1)
@given(st.lists(st.floats(0, 1.5), min_size=1, max_size=32), st.integers(0, 20), seeds)
def test_the_error_of_small_matrices_does_not_depend_on_probes(sigma, extra, seed):
    """Up to 32 rows the start vectors span the space: what is left is 16 steps' quadrature."""
    update = with_singular_values(sigma, len(sigma) + extra, seed).float()
    expected = np.mean((np.array(sigma) - 1) ** 2)
    assert float(by_lanczos(update).error) == pytest.approx(expected, rel=0.01, abs=1e-5)
    assert float(orthogonalization_error(update)) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("triples", [[MUON] * 5, list(POLAR_EXPRESS[:4])], ids=["muon", "polar"])
@pytest.mark.parametrize("shape", [(33, 33), (64, 256), (200, 100), (256, 256), (256, 1024)])
def test_the_estimated_error_of_updates_is_within_a_few_percent(shape, triples):
    m, n = min(shape), max(shape)
    decades = np.linspace(0, 3, m)
    momenta = [
        gaussian(*shape, seed=1),
        with_singular_values(10**-decades, n, seed=2).reshape(shape),
        with_singular_values(1 / np.arange(1, m + 1), n, seed=3).reshape(shape),
    ]
    updates = [newton_schulz(momentum, triples).float() for momentum in momenta]
    actual = np.array([float(by_lanczos(update).error) for update in updates])
    relative = actual / [error_by_svd(update) for update in updates] - 1
    assert np.abs(relative).max() < 0.08
    assert np.sqrt((relative**2).mean()) < 0.04


def test_many_probes_leave_no_bias():
    """The error of one draw of signs is noise: over matrices it averages out."""
    updates = torch.stack(
        [newton_schulz(gaussian(96, 96, seed=seed), [MUON] * 5) for seed in range(24)]
    )
    actual = by_lanczos(updates).error
    relative = actual / torch.tensor([error_by_svd(u) for u in updates]) - 1
    assert abs(float(relative.mean())) < 0.005
    assert float(relative.abs().max()) > 1e-4  # it is an estimate; the exact path is another


def test_the_rational_form_of_the_error_is_as_close_as_stated():
    """A (1, 1) matrix e has the error (sqrt(1 + e) - 1)^2; no cancellation near e = 0."""
    sigma = torch.cat([torch.linspace(0, 3, 301), 1 + torch.logspace(-7, -3, 9)]).double()
    excess = sigma.square() - 1
    matrix = spectrum.Tridiagonal(excess[:, None, None], torch.zeros(len(sigma), 1, 0).double())
    actual = spectrum.square_root_error(matrix)[:, 0]
    bound = 2 * sigma * ((1 - sigma) / (1 + sigma)).abs() ** (2 * spectrum.NODES)
    expected = (sigma - 1) ** 2
    assert ((actual - expected).abs() <= 2 * bound + 1e-7 * expected).all()


def test_the_quartic_is_as_close_as_stated():
    sigma = np.linspace(0, 1.3, 1401)
    sigma = sigma[np.abs(sigma - 1) > 1e-6]
    powers = np.stack([(sigma**2 - 1) ** power for power in (2, 3, 4)])
    relative = spectrum.QUARTIC @ powers / (sigma - 1) ** 2 - 1
    assert np.abs(relative).max() < 0.245


@pytest.mark.parametrize("rows", [3, 8, 32])
def test_the_samples_of_small_matrices_are_the_traces(rows):
    """From all unit vectors the mean of v' q(E) v is that of q over numpy's eigenvalues."""
    excess = gaussian(2, 3, rows, rows)
    excess = (excess + excess.mT) / 2
    start = torch.eye(rows, dtype=excess.dtype).expand_as(excess)
    small = spectrum.tridiagonalise(lambda vectors: vectors @ excess, start, spectrum.STEPS)
    eigenvalues = np.linalg.eigvalsh(excess.numpy())
    powers = np.stack([(eigenvalues**power).mean(-1) for power in (2, 3, 4)])
    expected = np.tensordot(spectrum.QUARTIC, powers, 1)
    np.testing.assert_allclose(spectrum._quartic_of_samples(small), expected, rtol=1e-9)
    np.testing.assert_allclose(spectrum._quartic_of_gram(excess), expected, rtol=1e-9)


def test_an_accelerator_measures_stacks_of_stacks_one_by_one():
    updates = newton_schulz(gaussian(2, 3, 40, 60), [MUON] * 5)
    one_by_one = [[float(by_lanczos(update).error) for update in row] for row in updates]
    np.testing.assert_allclose(by_lanczos(updates).error, one_by_one, rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), exponents, seeds)
def test_the_range_lies_within_the_true_one(m, n, exponent, seed):
    matrix = (gaussian(m, n, seed=seed) * 10.0**exponent).float()
    sigma = svdvals(matrix.double().numpy())
    least, greatest = (float(value) for value in singular_value_range(matrix))
    tolerance = 2e-3 * sigma[0]  # sqrt of float32's rounding of sigma^2, near zero
    assert sigma[-1] - tolerance <= least <= sigma[-1] + 0.05 * sigma[0]
    assert 0.99 * sigma[0] <= greatest <= sigma[0] * (1 + 1e-5)
    if min(m, n) <= 16:
        assert least == pytest.approx(sigma[-1], abs=tolerance)
        assert greatest == pytest.approx(sigma[0], rel=1e-3)


def test_more_iterations_bring_the_range_closer():
    matrix = gaussian(300, 300)
    sigma = svdvals(matrix.numpy())
    ranges = [singular_value_range(matrix, iterations) for iterations in (2, 8, 32)]
    least, greatest = torch.tensor(ranges).T
    assert (least.diff() < 0).all() and (greatest.diff() > 0).all()
    assert float(greatest[-1]) == pytest.approx(sigma[0], rel=1e-3)
    assert float(greatest[0]) < 0.97 * sigma[0]


@pytest.mark.parametrize("rows", [1, 2, 20, 50])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_multiples_of_orthogonal_matrices(rows, factor):
    """One singular value: Lanczos' method ends after its first step."""
    update = factor * torch.eye(rows, rows + 3)[torch.randperm(rows)]
    found = by_lanczos(update)
    assert float(found.error) == pytest.approx((factor - 1) ** 2, abs=1e-6)
    for value in (found.smallest, found.largest, *singular_value_range(update)):
        assert float(value) == pytest.approx(factor, rel=1e-6)


def test_structured_matrices_hide_nothing_from_the_probes():
    """Eigenvectors that a single start vector of equal entries would never see."""
    pairs = torch.block_diag(*[torch.tensor([[0.8, 0.2], [0.2, 0.8]])] * 8)
    lone = torch.diag(torch.tensor([1.0] * 15 + [0.25]))
    assert [float(x) for x in singular_value_range(pairs)] == pytest.approx([0.6, 1.0], abs=1e-5)
    assert [float(x) for x in singular_value_range(lone)] == pytest.approx([0.25, 1.0], abs=1e-5)
    assert float(by_lanczos(pairs).error) == pytest.approx(0.16 / 2, rel=1e-3)


@pytest.mark.parametrize("rows", [8, 70])
def test_missing_directions_count_one_each(rows):
    update = with_singular_values([1.0] * (rows // 2) + [0.0] * (rows // 2), rows).float()
    assert float(by_lanczos(update).error) == pytest.approx(0.5, rel=0.03)
    assert float(orthogonalization_error(update, exact=True)) == pytest.approx(0.5, rel=1e-3)
    assert float(orthogonalization_error(torch.zeros(rows, rows))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("exponent", [-25, -5, 3, 12, 18])
def test_matrices_that_are_no_updates_keep_the_right_size(exponent, exact):
    matrix = gaussian(70, 90) * 10.0**exponent
    actual = float(orthogonalization_error(matrix.float(), exact=exact))
    assert actual == pytest.approx(error_by_svd(matrix), rel=0.01)


def test_the_error_ignores_orientation():
    update = newton_schulz(gaussian(70, 150), [MUON] * 5)
    torch.testing.assert_close(
        orthogonalization_error(update.mT), orthogonalization_error(update), rtol=1e-9, atol=0
    )


def test_lanczos_too_keeps_broken_matrices_apart():
    stack = newton_schulz(gaussian(3, 40, 50, dtype=torch.float32), [MUON] * 5)
    sound = by_lanczos(stack)
    stack[1, 0, 0] = float("inf")
    for value, expected in zip(by_lanczos(stack), sound, strict=True):
        assert value.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(value[::2], expected[::2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("iterations", "error"), [(0, ValueError), (2.0, TypeError)])
def test_iterations_are_counted(iterations, error):
    with pytest.raises(error, match="`iterations` must be"):
        singular_value_range(torch.eye(3), iterations)


@pytest.mark.parametrize("shape", [(40, 500), (500, 40), (2, 3, 70, 90)])
def test_a_gram_matrix_summed_in_slices_is_the_whole(shape, monkeypatch):
    monkeypatch.setattr(matrices, "SLICE_ELEMENTS", 2000)
    update = gaussian(*shape) / 20
    found = orthogonalization_error(update, exact=True).flatten()
    expected = [error_by_svd(matrix) for matrix in update.reshape(-1, *shape[-2:])]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 3000), st.integers(1, 40))
def test_slices_cover_a_dimension_once_and_are_no_larger_than_said(extent, size, least):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrices, "SLICE_ELEMENTS", 1000)
        parts = [range(extent)[part] for part in matrices.slices(extent, size, least)]
    assert [index for part in parts for index in part] == list(range(extent))
    assert all(parts)
    assert max(map(len, parts)) <= max(least, 1000 // size)


@pytest.mark.parametrize("rows", [1, 32, 33, 100, 512, 2000])
def test_probes_are_unit_vectors_of_unrelated_signs(rows):
    """Small matrices get every direction; otherwise means and inner products are 0 +- 5 sigma."""
    found = spectrum.probes(rows, like=gaussian(1))
    if rows <= 32:
        assert torch.equal(found, torch.eye(rows, dtype=torch.float64))
        return
    count = max(4, 2048 // rows)
    assert found.shape == (count, rows)
    torch.testing.assert_close(found.abs(), torch.full_like(found, rows**-0.5))
    products = (found @ found.T).fill_diagonal_(0)
    assert products.abs().max() < 5 * rows**-0.5
    assert abs(float((found * rows**0.5).mean())) < 5 * (count * rows) ** -0.5
