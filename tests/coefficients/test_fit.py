"""Fits reproduce the paper, go beyond it, and are bounded; oracles: Table 1, SVD, scipy."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_root.coefficients import (
    fit_coefficients,
    log_uniform,
    marchenko_pastur,
    mixture,
    output_range,
)
from lightning_root.coefficients.published import MUON, PUBLISHED, TABLE_1

CANS = PUBLISHED["cans"].triples
POLAR_EXPRESS = PUBLISHED["polar_express"].triples
QUINTIC = PUBLISHED["quintic"].triples

TABLE_1_MSE = {  # arXiv:2511.20626, Table 1: Muon's triple, the paper's triple
    (2048, 2048): (0.0499, 0.0352),
    (4096, 4096): (0.0637, 0.0470),
    (8192, 8192): (0.0761, 0.0587),
    (2048, 3072): (0.0338, 0.0024),
    (2048, 4096): (0.0362, 0.0010),
    (2048, 8192): (0.0340, 0.0003),
    (2048, 16384): (0.0425, 0.0003),
}
WIDE = [shape for shape in TABLE_1 if shape[0] < shape[1]]


def error(triples, sigma):
    """Mean (p_T(sigma) - 1)^2 in numpy."""
    x = np.asarray(sigma)
    for a, b, c in triples:
        x = a * x + b * x**3 + c * x**5
    return np.mean((x - 1) ** 2)


def gaussian_sigma(shape, seed=0):
    matrix = np.random.default_rng(seed).standard_normal(shape)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return sigma / np.linalg.norm(sigma)


@pytest.mark.parametrize("shape", TABLE_1)
def test_both_error_columns_of_table_1(shape):
    """The printed values have two significant digits at the wide end: half a unit of the last."""
    spectrum = marchenko_pastur(*shape)
    for triple, printed in zip((MUON, TABLE_1[shape]), TABLE_1_MSE[shape], strict=True):
        mse = spectrum.mean_square_error([triple] * 5)
        assert mse == pytest.approx(printed, rel=0.02, abs=0.6e-4)


@pytest.mark.parametrize(
    "shape", [(2048, 2048), (4096, 4096), (8192, 8192), (2048, 3072), (2048, 4096)]
)
def test_one_triple_is_the_papers(shape):
    fitted = fit_coefficients(shape, per_step=False)
    assert set(fitted.triples) == {fitted.triples[0]}
    assert fitted.triples[0] == pytest.approx(TABLE_1[shape], abs=1e-3)


@pytest.mark.parametrize("shape", [(2048, 8192), (2048, 16384)])
def test_one_triple_is_better_and_bounded_where_the_papers_is_not_the_optimum(shape):
    spectrum = marchenko_pastur(*shape)
    fitted = fit_coefficients(shape, per_step=False)
    assert fitted.mse < spectrum.mean_square_error([TABLE_1[shape]] * 5)
    assert output_range(fitted.triples, upper=1.02)[1] < 1.3


@pytest.mark.parametrize(
    ("shape", "steps", "limit"),
    [
        ((2048, 2048), 5, 0.014),
        ((8192, 8192), 5, 0.025),
        *((shape, 5, 2e-4) for shape in WIDE),
        *zip(WIDE, [4] * 4, [0.0024, 0.0011, 0.0008, 0.0003], strict=True),
    ],
)
def test_a_triple_per_step_on_gaussian_matrices(shape, steps, limit):
    """Finely integrated, so that a fit to its own few nodes would be found out."""
    fitted = fit_coefficients(shape, steps)
    fine = marchenko_pastur(*shape, nodes=4000)
    assert fine.mean_square_error(fitted.triples) <= limit
    if steps == 5:
        low, high = output_range(fitted.triples, lower=1e-3)
        assert low >= 0.6
        assert high <= 1.15


@pytest.mark.parametrize("shape", [(300, 300), (200, 500)])
@pytest.mark.parametrize("steps", [4, 5])
def test_held_out_matrices_have_the_error_that_the_fit_states(shape, steps):
    """By SVD of eight random matrices; square ones have a little more near zero than the law."""
    fitted = fit_coefficients(shape, steps, marchenko_pastur(*shape))
    sigmas = [gaussian_sigma(shape, seed) for seed in range(8)]
    measured = np.mean([error(fitted.triples, sigma) for sigma in sigmas])
    assert measured == pytest.approx(fitted.mse, rel=0.15, abs=3e-5)
    for other in ((MUON,) * 5, QUINTIC, POLAR_EXPRESS[:5], CANS):
        assert measured < np.mean([error(other[:steps], sigma) for sigma in sigmas])


def test_another_method_finds_no_better_optimum_within_the_same_bounds():
    """scipy's L-BFGS-B from our schedule, with a penalty where p_T exceeds 1.15."""
    spectrum = mixture((0.9, marchenko_pastur(256, 512)), (0.1, log_uniform()))
    fitted = fit_coefficients((256, 512), 4, spectrum)
    sigma, weight = spectrum.sigma.numpy(), spectrum.weight.numpy()
    inputs = np.linspace(0, 1, 4001)
    rounded = np.linspace(0, 1.015, 4001)  # with one unit of bfloat16 at every step

    def p(values, x, slack=0.0):
        for a, b, c in values.reshape(-1, 3):
            x = x * (1 + slack)
            x = np.clip(a * x + b * x**3 + c * x**5, -10, 10)
        return x

    def loss(values):
        excess = (
            np.maximum(p(values, inputs) - 1.145, 0),
            np.maximum(p(values, rounded, 2**-8) - 1.245, 0),
        )
        error = np.sum(weight * (p(values, sigma) - 1) ** 2)
        return error + sum(10 * np.mean(e**2) + np.max(e) ** 2 for e in excess)

    start = np.array(fitted.triples).ravel()
    found = scipy.optimize.minimize(loss, start, method="L-BFGS-B", options={"maxfun": 20_000})
    assert loss(start) == pytest.approx(fitted.mse, rel=0.01)
    assert found.fun > 0.97 * fitted.mse


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5000), st.integers(1, 50_000)),
    steps=st.integers(1, 8),
    share=st.floats(0.0, 0.5),
)
def test_every_fit_is_bounded_and_beats_muon(shape, steps, share):
    spectrum = marchenko_pastur(*shape)
    if share > 0.01:
        spectrum = mixture((1 - share, spectrum), (share, log_uniform()))
    fitted = fit_coefficients(shape, steps, spectrum)
    low, high = output_range(fitted.triples, upper=1.02)
    assert low >= 0.0
    assert high <= 1.3
    assert fitted.mse <= spectrum.mean_square_error([MUON] * steps) * 1.001
    assert fitted.steps == steps


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 2), (24, 64), (192, 768), (3, 4000)])
@pytest.mark.parametrize("steps", [1, 3, 5, 12])
def test_one_triple_for_small_and_odd_shapes_is_no_worse_than_muons(shape, steps):
    fitted = fit_coefficients(shape, steps, per_step=False)
    spectrum = marchenko_pastur(*shape)
    assert fitted.mse <= spectrum.mean_square_error([MUON] * steps)
    assert output_range(fitted.triples, upper=1.02)[1] <= 1.3


def test_fits_are_deterministic_and_stay_on_the_host_whatever_the_default_device():
    """A fit takes thousands of tiny operations, and NPUs have no float64."""
    with torch.device("meta"):
        one = fit_coefficients((33, 77), 4)
    torch.manual_seed(7)
    assert fit_coefficients((77, 33), 4) == one
    assert (one.shape, one.steps) == ((33, 77), 4)
    assert one.source and one.source != fit_coefficients((33, 77), 4, per_step=False).source


def test_starting_points_are_used():
    """From the optimum itself, the result is no worse."""
    spectrum = marchenko_pastur(128, 128)
    first = fit_coefficients((128, 128), 5, spectrum)
    again = fit_coefficients((128, 128), 5, spectrum, starts=[first.triples])
    assert again.mse <= first.mse * (1 + 1e-9)


def test_a_starting_point_without_a_slope_stops_nothing():
    """All derivatives are zero there, and the linear system singular."""
    fitted = fit_coefficients((8, 16), 3, starts=[((0.0, 0.0, 0.0),) * 3])
    assert fitted.mse < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3,),), "`shape` must be two whole numbers >= 1"),
        (((0, 4),), "`shape` must be two whole numbers >= 1"),
        (((2.5, 4),), "`shape` must be two whole numbers >= 1"),
        (((8, 4), 0), "`steps` must be a whole number from 1 to 12, got 0"),
        (((8, 4), 5.0), "`steps` must be a whole number from 1 to 12"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_coefficients(*arguments)
