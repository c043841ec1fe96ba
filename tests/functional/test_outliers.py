"""Laws of the soft threshold, against torch.quantile, numpy and the definition in the paper."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_root.functional import clip_outliers, outlier_threshold
from lightning_root.functional.outliers import sample_stride, select_by_partition, select_by_sorting
from tests.reference.root import automatic_p

quantiles = st.floats(0.01, 1.0)


def heavy_tailed(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tail = torch.randn(*shape, generator=generator)
    return torch.randn(*shape, generator=generator) * tail.abs().pow(3).exp().clamp(max=50)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), quantiles, st.integers(0, 99))
def test_threshold_is_torchs_quantile_where_nothing_is_zero(m, n, quantile, seed):
    matrix = heavy_tailed(m, n, seed=seed)
    expected = torch.quantile(matrix.abs().double(), quantile)
    torch.testing.assert_close(
        outlier_threshold(matrix, quantile).double(), expected, rtol=1e-6, atol=0
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), quantiles, st.floats(0, 1), st.integers(0, 99))
def test_zeros_do_not_count(m, n, quantile, share, seed):
    matrix = heavy_tailed(m, n, seed=seed)
    matrix[torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < share] = 0
    magnitudes = matrix.abs()[matrix != 0].double()
    expected = torch.quantile(magnitudes, quantile) if magnitudes.numel() else torch.zeros(())
    torch.testing.assert_close(
        outlier_threshold(matrix, quantile).double(), expected.double(), rtol=1e-6, atol=0
    )


def test_a_sparse_matrix_keeps_its_entries():
    """With the plain quantile eps would be 0 here and the base nothing but signs."""
    matrix = torch.zeros(40, 40)
    matrix[3] = heavy_tailed(40)
    row = clip_outliers(matrix, 0.9)[3]
    assert (row == matrix[3]).sum() == 36
    assert torch.equal(row, clip_outliers(matrix[3:4], 0.9)[0])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), quantiles, st.integers(0, 99))
def test_clamping_is_subtracting_the_soft_thresholded_outliers(m, n, quantile, seed):
    """B = N - sign(N) max(|N| - eps, 0) (arXiv:2511.20626, Sec. 3.3), in float64."""
    matrix = heavy_tailed(m, n, seed=seed).double()
    eps = outlier_threshold(matrix, quantile)
    outliers = matrix.sign() * (matrix.abs() - eps).clamp(min=0)
    torch.testing.assert_close(
        clip_outliers(matrix, quantile), matrix - outliers, rtol=1e-12, atol=1e-12
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 50), quantiles, st.floats(0, 1), st.integers(0, 99))
def test_selection_and_sorting_agree(k, size, quantile, share, seed):
    """The path for accelerators, run on the CPU, against the path for CPUs."""
    magnitudes = heavy_tailed(k, size, seed=seed).abs()
    magnitudes[torch.rand(k, size, generator=torch.Generator().manual_seed(seed)) < share] = 0
    torch.testing.assert_close(
        select_by_sorting(magnitudes, quantile),
        select_by_partition(magnitudes.clone(), quantile),
        rtol=1e-6,
        atol=0,
    )


def test_thresholds_are_per_matrix():
    stack = heavy_tailed(2, 3, 8, 9)
    thresholds = outlier_threshold(stack, 0.8)
    assert thresholds.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert thresholds[i, j] == outlier_threshold(stack[i, j], 0.8)


def test_more_elements_than_torchs_quantile_takes():
    """2^24 + 1 entries, where torch.quantile raises."""
    matrix = torch.arange(1, 2**24 + 2, dtype=torch.float64).reshape(1, -1)
    assert outlier_threshold(matrix, 0.5).item() == np.float64(2**23 + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_input_are_kept(dtype):
    matrix = heavy_tailed(10, 10).to(dtype)
    before = matrix.clone()
    result = clip_outliers(matrix, 0.9)
    assert result.dtype == dtype
    assert torch.equal(matrix, before)
    assert (result.abs() < matrix.abs()).sum() == 10


def test_zero_and_empty_matrices():
    assert torch.equal(clip_outliers(torch.zeros(3, 3), 0.9), torch.zeros(3, 3))
    assert clip_outliers(torch.zeros(2, 0, 3), 0.9).shape == (2, 0, 3)
    assert clip_outliers(torch.zeros(0, 2, 3), 0.9).shape == (0, 2, 3)


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.1, float("nan")])
def test_bad_quantiles_are_named(quantile):
    with pytest.raises(ValueError, match=r"`quantile` must be in \(0, 1\], got"):
        clip_outliers(torch.ones(2, 2), quantile)


def test_bad_matrices_are_named():
    with pytest.raises(ValueError, match="`matrix` must have at least 2 dimensions"):
        outlier_threshold(torch.ones(3), 0.9)
    with pytest.raises(TypeError, match="`matrix` must be a floating point tensor"):
        outlier_threshold(torch.ones(3, 3, dtype=torch.int32), 0.9)


def clipped_share(matrix, threshold):
    return (matrix.abs() > threshold).double().mean().item()


@pytest.mark.parametrize("columns", [768, 1024, 1000, 4096])
def test_a_sample_clips_the_share_that_it_says(columns):
    """Standard deviation sqrt(p (1 - p) / 65536) = 0.0012, where loud columns lie evenly."""
    matrix = heavy_tailed(1024, columns)
    matrix[:, ::16] *= 10.0  # a stride that divides the row length would see these alone, or never
    threshold = outlier_threshold(matrix, 0.9, mode="sampled")
    assert clipped_share(matrix, threshold) == pytest.approx(0.1, abs=5 * 0.0012)


def test_a_plain_stride_would_fail_where_a_coprime_one_does_not():
    """That the test above can fail."""
    matrix = heavy_tailed(1024, 1024)
    matrix[:, ::16] *= 10.0
    threshold = torch.quantile(matrix.flatten()[:: 1024 * 1024 // 65536].abs(), 0.9)
    assert clipped_share(matrix, threshold) < 0.01


@pytest.mark.parametrize("shape", [(100, 100), (3, 200, 300)])
def test_small_matrices_are_not_sampled(shape):
    matrix = heavy_tailed(*shape)
    exact = outlier_threshold(matrix, 0.9)
    assert torch.equal(outlier_threshold(matrix, 0.9, mode="sampled"), exact)


def test_the_largest_magnitude_is_not_sampled():
    matrix = heavy_tailed(600, 700)
    assert outlier_threshold(matrix, 1.0, mode="sampled") == matrix.abs().max()


def test_a_matrix_that_the_sample_misses_is_not_clipped():
    """A threshold of zero would leave nothing of it."""
    matrix = torch.zeros(3, 600, 700)
    matrix[0, 2, 3], matrix[1, 4, 6] = -2.0, 1e-30
    assert not matrix.flatten(1)[:, ::3].any()  # the sample: at most 6 = 420000 / 65536, coprime
    found = outlier_threshold(matrix, 0.9, mode="sampled")
    torch.testing.assert_close(found, torch.tensor([2.0, 1e-30, 0.0]), rtol=0, atol=0)


def test_on_a_cpu_auto_is_exact():
    matrix = heavy_tailed(600, 700)
    assert outlier_threshold(matrix, 0.9, mode="auto") == outlier_threshold(matrix, 0.9)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match=r"`mode` must be one of .*got 'fast'"):
        outlier_threshold(torch.ones(2, 2), 0.9, mode="fast")


class Accelerated(torch.Tensor):
    """Says that it is on a GPU, so that the path for those is taken; its entries are here."""

    @property
    def device(self):
        return torch.device("cuda")


def on_accelerator(matrix, *args, **kwargs):
    found = outlier_threshold(matrix.as_subclass(Accelerated), *args, **kwargs)
    return found.as_subclass(torch.Tensor)


def test_accelerators_find_torchs_quantile_too():
    stack = heavy_tailed(2, 3, 30, 40)
    for quantile in (0.01, 0.5, 0.9, 1.0):
        expected = torch.quantile(stack.abs().flatten(-2).double(), quantile, dim=-1)
        found = on_accelerator(stack, quantile, mode="exact")
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    assert on_accelerator(torch.zeros(2, 0, 3), 0.9).shape == (2,)


@pytest.mark.parametrize("mode", ["exact", "sampled"])
def test_accelerators_choose_the_automatic_quantile_of_each_matrix(mode):
    """One with a tail, one without, and one of zeros; torch.quantile at the textbook's p."""
    stack = torch.stack([heavy_tailed(30, 40), torch.randn(30, 40), torch.zeros(30, 40)])
    p = automatic_p(stack[0].double())
    assert 0.8 <= p < 1.0 == automatic_p(stack[1].double())
    clipped = torch.quantile(stack[0].abs().double(), p)
    expected = torch.stack([clipped, stack[1].abs().max().double(), torch.zeros(()).double()])
    found = on_accelerator(stack[:, None], "auto", mode=mode)
    assert found.shape == (3, 1)
    torch.testing.assert_close(found[:, 0].double(), expected, rtol=1e-5, atol=0)
    assert on_accelerator(torch.zeros(2, 0, 3), "auto").tolist() == [0, 0]


def test_on_an_accelerator_auto_is_sampled():
    matrix = heavy_tailed(600, 700)
    found = on_accelerator(matrix, 0.9, mode="auto")
    assert found != outlier_threshold(matrix, 0.9)
    torch.testing.assert_close(found, outlier_threshold(matrix, 0.9, mode="sampled"))


@pytest.mark.parametrize("columns", [1, 2, 30, 77, 768, 1000, 4096])
@pytest.mark.parametrize("entries", [0.5, 1, 1.99, 2, 5.5, 64, 90, 210])
def test_the_stride_is_the_longest_that_leaves_enough_and_meets_all_columns(entries, columns):
    size = int(entries * 65536)
    coprime = [s for s in range(1, size // 65536 + 1) if np.gcd(s, columns) == 1]
    assert sample_stride(size, columns) == max(coprime, default=1)
