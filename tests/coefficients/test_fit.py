"""The fit reproduces the paper; the spectrum is that of real random matrices."""

import pytest
import torch

from lightning_root.coefficients import (
    fit_triple,
    marchenko_pastur,
    mean_square_error,
    output_range,
)
from lightning_root.coefficients.schedules import MUON, TABLE_1

TABLE_1_MSE = {  # arXiv:2511.20626, Table 1: Muon's triple, the paper's triple
    (2048, 2048): (0.0499, 0.0352),
    (4096, 4096): (0.0637, 0.0470),
    (8192, 8192): (0.0761, 0.0587),
    (2048, 3072): (0.0338, 0.0024),
    (2048, 4096): (0.0362, 0.0010),
    (2048, 8192): (0.0340, 0.0003),
    (2048, 16384): (0.0425, 0.0003),
}


@pytest.mark.parametrize("shape", [(300, 300), (200, 500)])
def test_spectrum_is_that_of_a_gaussian_matrix(shape):
    """Moments of the quadrature against the SVD of one matrix; they fluctuate by about 1/m."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.linalg.svdvals(matrix) / matrix.norm()
    sigma, weight = marchenko_pastur(*shape)
    assert weight.sum().item() == pytest.approx(1)
    for power in (1, 2, 4, 6):
        expected = exact.pow(power).mean().item()
        assert (weight * sigma**power).sum().item() == pytest.approx(expected, rel=0.02)
    assert sigma.max().item() == pytest.approx(exact.max().item(), rel=0.02)


@pytest.mark.parametrize("shape", TABLE_1)
def test_both_error_columns_of_table_1(shape):
    """The printed values have two significant digits at the wide end: half a unit of the last."""
    spectrum = marchenko_pastur(*shape)
    for triple, printed in zip((MUON, TABLE_1[shape]), TABLE_1_MSE[shape], strict=True):
        error = mean_square_error([triple] * 5, *spectrum)
        assert error == pytest.approx(printed, rel=0.02, abs=0.6e-4)


@pytest.mark.parametrize(
    "shape", [(2048, 2048), (4096, 4096), (8192, 8192), (2048, 3072), (2048, 4096)]
)
def test_the_fit_is_the_papers_triple(shape):
    assert fit_triple(shape) == pytest.approx(TABLE_1[shape], abs=1e-3)


def test_the_fit_stays_on_the_host_whatever_the_default_device():
    """A fit takes hundreds of tiny operations, and NPUs have no float64."""
    with torch.device("meta"):
        assert fit_triple((33, 77)) == fit_triple((33, 77))
        fit_triple.cache_clear()
        assert all(isinstance(value, float) for value in fit_triple((33, 77)))


@pytest.mark.parametrize("shape", [(2048, 8192), (2048, 16384)])
def test_the_fit_is_better_and_bounded_where_the_papers_is_not_the_optimum(shape):
    spectrum = marchenko_pastur(*shape)
    fitted = [fit_triple(shape)] * 5
    assert mean_square_error(fitted, *spectrum) < mean_square_error([TABLE_1[shape]] * 5, *spectrum)
    assert output_range(fitted, upper=1.02)[1] < 1.3


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 2), (24, 64), (192, 768), (3, 4000)])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_small_and_odd_shapes_get_a_bounded_triple_no_worse_than_muons(shape, steps):
    spectrum = marchenko_pastur(*shape)
    fitted = [fit_triple(shape, steps)] * steps
    assert mean_square_error(fitted, *spectrum) <= mean_square_error([MUON] * steps, *spectrum)
    assert output_range(fitted, upper=1.02)[1] <= 1.3
