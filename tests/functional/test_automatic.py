"""Laws of the automatic quantile and of the tail it reads, against scipy and the textbook twin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from lightning_root.functional import (
    automatic_quantile,
    clip_outliers,
    kurtosis,
    outlier_threshold,
    relative_kurtosis,
)
from lightning_root.functional.outliers import select_by_sorting
from tests.reference.root import automatic_p

sizes, seeds = st.integers(1, 14), st.integers(0, 99)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def with_outliers(*shape, share=0.01, size=30.0, seed=0):
    matrix = gaussian(*shape, seed=seed)
    hit = torch.rand(*shape, generator=generator(seed + 1)) < share
    return torch.where(hit, size * matrix.sign(), matrix)


def with_scales(matrix, seed=0):
    """Every row and every column louder or softer, over several orders of magnitude."""
    rows, columns = matrix.shape
    return (gaussian(rows, 1, seed=seed + 2).exp() ** 2 * matrix) * gaussian(columns).exp() ** 2


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 14), st.integers(2, 14), seeds)
def test_relative_kurtosis_is_one_more_than_pearsons_contingency(m, n, seed):
    matrix = with_outliers(m, n, share=0.1, seed=seed).double()
    energy = matrix.square()
    statistic = chi2_contingency(energy.numpy(), correction=False).statistic
    expected = torch.tensor(1.0 + statistic / energy.sum().item(), dtype=torch.float64)
    torch.testing.assert_close(relative_kurtosis(matrix), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_rank_one_is_not_a_tail_however_heavy(power):
    matrix = torch.outer(gaussian(64) ** power, gaussian(96, seed=1) ** power)
    torch.testing.assert_close(relative_kurtosis(matrix), torch.tensor(1.0))
    assert torch.equal(clip_outliers(matrix, "auto"), matrix)


@pytest.mark.parametrize("rank", [2, 5, 100])
def test_sums_of_outer_products_are_not_clipped(rank):
    """Those of Gaussian vectors, of which some rows and columns are much louder than others."""
    matrix = with_scales(gaussian(200, rank) @ gaussian(rank, 300, seed=1))
    assert 1.0 < relative_kurtosis(matrix) < 3.0
    assert torch.equal(clip_outliers(matrix, "auto"), matrix)


def test_gaussian_entries_have_three_whatever_the_scales_of_rows_and_columns():
    matrix = gaussian(1000, 1500)
    assert relative_kurtosis(matrix) == pytest.approx(3.0, abs=0.02)
    loud = (gaussian(1000, 1) / 2).exp() * matrix * (gaussian(1500) / 2).exp()
    assert relative_kurtosis(loud) < kurtosis(loud) / 5
    assert relative_kurtosis(loud) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("share", [0.001, 0.01])
def test_outliers_are_clipped_to_the_size_of_the_others(share):
    matrix = with_outliers(300, 400, share=share)
    threshold = outlier_threshold(matrix, "auto")
    assert 1.0 < threshold < 3.0  # of a standard deviation of 1 and outliers of 30
    assert (matrix.abs() > threshold).float().mean() < 0.2 + 1e-5


@pytest.mark.parametrize("exponent", [2, 6, 12, 18, 25, 36])
@pytest.mark.parametrize("rank_one", [False, True])
def test_one_outlier_does_not_pass_for_a_matrix_of_rank_one(exponent, rank_one):
    matrix = torch.outer(gaussian(40), gaussian(60, seed=1)) if rank_one else gaussian(40, 60)
    bulk = matrix.abs().max()
    matrix[3, 5] = 10.0**exponent
    assert outlier_threshold(matrix, "auto") < bulk


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, seeds, st.floats(0, 1), st.sampled_from(DTYPES))
def test_agrees_with_the_textbook(m, n, seed, zeros, dtype):
    matrix = with_outliers(m, n, share=0.1, size=100.0, seed=seed)
    matrix[torch.rand(m, n, generator=generator(seed)) < zeros] = 0
    matrix = matrix.to(dtype)
    expected = torch.tensor(automatic_p(matrix.double()), dtype=torch.float64)
    quantile = automatic_quantile(matrix)
    assert quantile.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(quantile.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_the_scale_does_not_matter(scale):
    matrix = with_outliers(50, 70)
    torch.testing.assert_close(automatic_quantile(matrix * scale), automatic_quantile(matrix))
    threshold = outlier_threshold(matrix, "auto")
    torch.testing.assert_close(outlier_threshold(matrix * scale, "auto"), threshold * scale)


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, seeds)
def test_neither_order_nor_transposition_nor_zero_rows_matter(m, n, seed):
    matrix = with_outliers(m, n, share=0.1, seed=seed)
    expected = automatic_quantile(matrix)
    mixed = matrix[torch.randperm(m, generator=generator(seed))]
    mixed = mixed[:, torch.randperm(n, generator=generator(seed))]
    padded = torch.nn.functional.pad(matrix, (1, 2, 3, 4))
    for other in (matrix.mT, mixed, padded):
        torch.testing.assert_close(automatic_quantile(other), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["exact", "sampled", "auto"])
def test_each_matrix_of_a_batch_is_treated_by_itself(mode):
    stack = torch.stack([gaussian(30, 40), with_outliers(30, 40), torch.zeros(30, 40)]).repeat(
        2, 1, 1, 1
    )
    thresholds = outlier_threshold(stack, "auto", mode=mode)
    quantiles = automatic_quantile(stack)
    assert (quantiles[:, 1] < 0.9).all() and (quantiles[:, ::2] == 1).all()
    for i in range(2):
        for j in range(3):
            expected = outlier_threshold(stack[i, j], quantiles[i, j].item())
            assert thresholds[i, j] == expected


def test_selection_by_sorting_takes_a_quantile_for_each_row():
    """The path for accelerators, run on the CPU."""
    magnitudes, quantiles = gaussian(6, 50).abs(), torch.rand(6, generator=generator(0))
    found = select_by_sorting(magnitudes, quantiles[:, None])
    for row, quantile, value in zip(magnitudes, quantiles, found, strict=True):
        expected = torch.quantile(row.double(), quantile.double())
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)


def test_a_sample_clips_the_share_that_the_tail_of_all_entries_calls_for():
    matrix = with_outliers(600, 700, share=0.002, size=8.0)
    share = 1.0 - automatic_quantile(matrix).item()
    assert 0.005 < share < 0.2
    threshold = outlier_threshold(matrix, "auto", mode="sampled")
    assert (matrix.abs() > threshold).float().mean() == pytest.approx(share, abs=5 * 0.0012)


@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_without_a_tail_the_threshold_is_the_largest_of_all_entries(mode):
    matrix = gaussian(600, 700)
    assert outlier_threshold(matrix, "auto", mode=mode) == matrix.abs().max()


def test_zero_empty_and_broken_matrices():
    assert torch.equal(clip_outliers(torch.zeros(3, 3), "auto"), torch.zeros(3, 3))
    assert clip_outliers(torch.zeros(2, 0, 3), "auto").shape == (2, 0, 3)
    assert clip_outliers(torch.zeros(0, 2, 3), "auto").shape == (0, 2, 3)
    matrix = gaussian(20, 30).repeat(3, 1, 1)
    matrix[1, 2, 3], matrix[2, 2, 3] = torch.inf, torch.nan
    assert automatic_quantile(matrix).tolist() == [1.0, pytest.approx(0.8), pytest.approx(0.8)]
    assert outlier_threshold(matrix, "auto").isfinite().all()


def test_an_unknown_quantile_is_named():
    with pytest.raises(ValueError, match=r"`quantile` must be .* got 'fast'; .* \"auto\" clips"):
        clip_outliers(torch.ones(2, 2), "fast")
