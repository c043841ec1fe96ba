"""Laws of the measures of entries, and of all measures, against scipy and numpy in float64."""

from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import polar, svdvals
from scipy.spatial import distance

from lightning_root.functional import (
    clip_outliers,
    cosine_similarity,
    kurtosis,
    orthogonalization_error,
    outlier_energy,
    outlier_fraction,
    relative_threshold,
    root_mean_square,
    singular_value_range,
    update_to_weight_ratio,
)

sizes = st.integers(1, 24)
seeds = st.integers(0, 99)
exponents = st.integers(-30, 30)  # of the scale, in float32

ONE_MATRIX = {
    "root_mean_square": root_mean_square,
    "kurtosis": kurtosis,
    "orthogonalization_error": orthogonalization_error,
    "exact_error": lambda x: orthogonalization_error(x, exact=True),
    "sigma_min": lambda x: singular_value_range(x)[0],
    "sigma_max": lambda x: singular_value_range(x)[1],
}
TWO_MATRICES = {
    "cosine_similarity": cosine_similarity,
    "outlier_fraction": outlier_fraction,
    "outlier_energy": outlier_energy,
    "relative_threshold": relative_threshold,
    "update_to_weight_ratio": update_to_weight_ratio,
}
ALL = ONE_MATRIX | {name: (lambda x, f=f: f(x, x.clamp(-1, 1))) for name, f in TWO_MATRICES.items()}
each = pytest.mark.parametrize("measure", [pytest.param(f, id=name) for name, f in ALL.items()])


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, exponents, seeds)
def test_root_mean_square_and_kurtosis_at_any_scale(m, n, exponent, seed):
    matrix = gaussian(m, n, seed=seed).pow(3)
    scaled = (matrix * 10.0**exponent).float()
    second, fourth = (stats.moment(matrix.numpy(), k, axis=None, center=0) for k in (2, 4))
    assert float(root_mean_square(scaled)) == pytest.approx(
        np.sqrt(second) * 10.0**exponent, rel=1e-5
    )
    assert float(kurtosis(scaled)) == pytest.approx(fourth / second**2, rel=1e-5)


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, exponents, exponents, seeds)
def test_cosine_and_ratio_at_any_scale(m, n, first, second, seed):
    left, right = gaussian(m, n, seed=seed), gaussian(m, n, seed=seed + 100)
    scaled = (left * 10.0**first).float(), (right * 10.0**second).float()
    expected = 1 - distance.cosine(left.flatten().numpy(), right.flatten().numpy())
    assert float(cosine_similarity(*scaled)) == pytest.approx(expected, abs=1e-5)
    if abs(first - second) < 30:
        ratio = float(left.norm() / right.norm()) * 10.0 ** (first - second)
        assert float(update_to_weight_ratio(*scaled)) == pytest.approx(ratio, rel=1e-5)


def test_the_cosine_with_scipys_polar_factor_is_the_share_of_the_nuclear_norm():
    momentum = gaussian(10, 30)
    update = torch.from_numpy(polar(momentum.numpy())[0])
    expected = svdvals(momentum.numpy()).sum() / (np.sqrt(10) * float(momentum.norm()))
    assert float(cosine_similarity(momentum, update)) == pytest.approx(expected, rel=1e-12)
    assert float(cosine_similarity(5 * update, update)) == pytest.approx(1, rel=1e-12)


def test_no_cosine_is_beyond_one():
    """Though rounding takes the quotient there."""
    stack = gaussian(50, 7, 9, dtype=torch.float32)
    cosines = cosine_similarity(stack, -3 * stack)
    assert (cosines >= -1).all()
    torch.testing.assert_close(cosines, -torch.ones(50))


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, exponents, st.floats(0.1, 0.99), st.sampled_from([0.0, 0.5]), seeds)
def test_outliers_by_their_definition(m, n, exponent, quantile, share_of_zeros, seed):
    matrix = gaussian(m, n, seed=seed).pow(3)
    matrix[torch.rand(m, n, generator=torch.Generator().manual_seed(seed)) < share_of_zeros] = 0
    momentum = (matrix * 10.0**exponent).float()
    clipped = clip_outliers(momentum, quantile)
    reference, base = momentum.double().numpy(), clipped.double().numpy()
    energy = (reference**2).sum() or 1.0
    fraction = float(outlier_fraction(momentum, clipped))
    assert fraction == pytest.approx(np.mean(reference != base), abs=1e-6)
    assert float(outlier_energy(momentum, clipped)) == pytest.approx(
        ((reference - base) ** 2).sum() / energy, rel=1e-4, abs=1e-12
    )
    assert float(relative_threshold(momentum, clipped)) == pytest.approx(
        np.abs(base).max() / np.sqrt(energy / reference.size), rel=1e-5
    )


def test_the_stated_values_for_gaussian_entries():
    """Integrals of the normal density, by scipy."""
    momentum = gaussian(800, 1000)
    clipped = clip_outliers(momentum, 0.9)
    threshold = stats.norm.ppf(0.95)
    energy = 2 * stats.norm.expect(lambda x: (x - threshold) ** 2, lb=threshold)
    assert energy == pytest.approx(0.031, abs=5e-4)
    assert threshold == pytest.approx(1.645, abs=5e-4)
    assert float(outlier_energy(momentum, clipped)) == pytest.approx(energy, rel=0.02)
    assert float(relative_threshold(momentum, clipped)) == pytest.approx(threshold, rel=0.005)
    assert float(outlier_fraction(momentum, clipped)) == pytest.approx(0.1, abs=1e-5)
    assert float(kurtosis(momentum)) == pytest.approx(3, rel=0.02)


def test_values_for_matrices_of_zeros():
    zero, some = torch.zeros(3, 5), torch.ones(3, 5)
    assert all(float(f(zero, zero)) == 0 for f in TWO_MATRICES.values())
    assert float(cosine_similarity(zero, some)) == 0 == float(update_to_weight_ratio(zero, some))
    assert float(update_to_weight_ratio(some, zero)) == float("inf")
    assert float(root_mean_square(zero)) == 0 == float(kurtosis(zero))
    assert [float(value) for value in singular_value_range(zero)] == [0, 0]


# What holds of all of them.


@each
def test_matrices_of_a_stack_do_not_touch_each_other(measure):
    stack = gaussian(2, 3, 9, 14, dtype=torch.float32)
    for bad, place in ((float("nan"), (0, 1)), (float("inf"), (1, 0)), (-float("inf"), (1, 2))):
        stack[*place, 3, 4] = bad
    values = measure(stack)
    assert values.shape == (2, 3) and values.dtype == torch.float32
    broken = torch.tensor([[False, True, False], [True, False, True]])
    assert torch.equal(values.isnan(), broken)
    for index in (~broken).nonzero().tolist():
        torch.testing.assert_close(values[*index], measure(stack[*index]), rtol=2e-5, atol=1e-6)


@each
def test_low_precision_is_measured_in_float32(measure):
    matrix = gaussian(12, 20).to(torch.bfloat16)
    before = matrix.clone()
    torch.testing.assert_close(measure(matrix), measure(matrix.float()), rtol=0, atol=0)
    assert torch.equal(matrix, before)
    assert measure(matrix.double()).dtype == torch.float64


@each
@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 3, 0)])
def test_nothing_to_measure(measure, shape):
    values = measure(torch.zeros(shape))
    assert values.shape == shape[:1]
    assert not values.any()


@each
def test_no_value_is_fetched_from_the_device_and_no_random_number_drawn(measure):
    """A meta tensor has no values: reading one, as a synchronisation would, raises."""
    state = torch.get_rng_state()
    if measure is not ALL["exact_error"]:
        assert measure(torch.empty(4, 40, 80, device="meta")).shape == (4,)
    assert not measure(gaussian(40, 80).requires_grad_()).requires_grad
    assert torch.equal(torch.get_rng_state(), state)


@each
def test_what_is_no_matrix_is_refused(measure):
    with pytest.raises(TypeError, match=r"must be a floating point tensor, got torch\.int64"):
        measure(torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="must have at least 2 dimensions"):
        measure(torch.ones(3))


@pytest.mark.parametrize("measure", TWO_MATRICES.values(), ids=TWO_MATRICES)
def test_matrices_of_different_shapes_are_refused(measure):
    with pytest.raises(ValueError, match=r"must have the same shape, got \(3, 4\) and \(4, 3\)"):
        measure(torch.ones(3, 4), torch.ones(4, 3))


@pytest.mark.parametrize(
    ("measure", "names"),
    [
        (root_mean_square, ["matrix"]),
        (kurtosis, ["momentum"]),
        (orthogonalization_error, ["update"]),
        (singular_value_range, ["matrix"]),
        (cosine_similarity, ["momentum", "update"]),
        (outlier_fraction, ["momentum", "clipped"]),
        (outlier_energy, ["momentum", "clipped"]),
        (relative_threshold, ["momentum", "clipped"]),
        (update_to_weight_ratio, ["update", "weight"]),
    ],
)
def test_what_is_refused_is_called_as_in_the_signature(measure, names):
    """Each argument in turn, and what to do with a vector."""
    assert list(signature(measure).parameters)[: len(names)] == names
    for place, name in enumerate(names):
        given = [torch.ones(3, 4)] * len(names)
        given[place] = torch.ones(3, 4, dtype=torch.int64)
        with pytest.raises(TypeError, match=f"^`{name}` must be a floating point tensor"):
            measure(*given)
    with pytest.raises(ValueError, match=rf"^`{names[0]}` must have .*v is the matrix v\[None\]"):
        measure(*[torch.ones(3)] * len(names))
