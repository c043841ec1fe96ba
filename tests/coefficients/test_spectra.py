"""Spectra are those of real matrices; histograms keep them, within a bin."""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_root.coefficients import (
    SpectrumHistogram,
    load_spectra,
    log_normal,
    log_uniform,
    marchenko_pastur,
    mixture,
    save_spectra,
    scaled_gaussian,
    training_model,
)
from lightning_root.coefficients.published import MUON
from lightning_root.coefficients.spectra import BINS, LOWEST


def quantile(spectrum, share):
    order = spectrum.sigma.argsort()
    cumulative = spectrum.weight[order].cumsum(0)
    return spectrum.sigma[order][torch.searchsorted(cumulative, share)].item()


@pytest.mark.parametrize("shape", [(300, 300), (200, 500)])
def test_marchenko_pastur_is_the_spectrum_of_a_gaussian_matrix(shape):
    """Moments of the quadrature against the SVD of one matrix; they fluctuate by about 1/m."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = torch.linalg.svdvals(matrix) / matrix.norm()
    spectrum = marchenko_pastur(*shape[::-1])
    assert spectrum.weight.sum().item() == pytest.approx(1)
    for power in (1, 2, 4, 6):
        expected = exact.pow(power).mean().item()
        measured = (spectrum.weight * spectrum.sigma**power).sum().item()
        assert measured == pytest.approx(expected, rel=0.02)
    assert spectrum.sigma.max().item() == pytest.approx(exact.max().item(), rel=0.02)


def test_scaled_gaussian_is_the_law_of_the_product():
    """Against drawn factors times drawn Gaussian singular values."""
    random = np.random.default_rng(0)
    factor = 0.3 * np.exp(random.standard_normal(100_000))
    matrix = random.standard_normal((400, 800))
    sigma = np.linalg.svd(matrix, compute_uv=False) / np.linalg.norm(matrix)
    product = np.minimum(factor * random.choice(sigma, factor.size), 1.0)
    spectrum = scaled_gaussian(400, 800, median=0.3, spread=1.0)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert quantile(spectrum, share) == pytest.approx(np.quantile(product, share), rel=0.1)


def test_log_uniform_and_log_normal_have_the_moments_of_their_laws():
    uniform = log_uniform(1e-3, 1.0)
    law = scipy.stats.loguniform(1e-3, 1.0)
    assert (uniform.weight * uniform.sigma).sum().item() == pytest.approx(law.mean(), rel=1e-3)
    normal = log_normal(0.01, 0.5)
    law = scipy.stats.lognorm(s=0.5, scale=0.01)
    assert (normal.weight * normal.sigma).sum().item() == pytest.approx(law.mean(), rel=0.01)
    assert log_normal(0.5, 2.0).sigma.max().item() == 1.0


def test_errors_of_many_schedules_are_those_of_each():
    """By numpy's polynomials; one number a schedule."""
    spectrum = marchenko_pastur(24, 60)
    schedules = torch.tensor([[MUON] * 3, [(1.5, -0.5, 0.0)] * 3, [(2.0, -1.5, 0.5)] * 3])
    errors = []
    for schedule in schedules.tolist():
        x = spectrum.sigma.numpy()
        for a, b, c in schedule:
            x = np.polynomial.Polynomial([0, a, 0, b, 0, c])(x)
        errors.append(np.average((x - 1) ** 2, weights=spectrum.weight.numpy()))
    found = spectrum.mean_square_errors(schedules.double())
    np.testing.assert_allclose(found, errors, rtol=1e-9)


def test_a_mixture_has_the_mean_of_its_parts():
    parts = (0.3, marchenko_pastur(20, 30)), (0.9, log_uniform())  # shares need not sum to 1
    mixed = mixture(*parts)
    assert mixed.weight.sum().item() == pytest.approx(1)
    triples = [(2.0, -1.5, 0.5)] * 3
    expected = sum(share / 1.2 * part.mean_square_error(triples) for share, part in parts)
    assert mixed.mean_square_error(triples) == pytest.approx(expected)
    assert mixed.name == "25 % Gaussian 20x30, 75 % log-uniform [0.001, 1]"


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1e-30, 1.0, 1e20]))
def test_a_histogram_holds_every_singular_value_within_its_bin(m, n, scale):
    matrix = torch.randn(m, n, generator=torch.Generator().manual_seed(m * 61 + n))
    sigma = torch.linalg.svdvals(matrix.double() * scale)
    histogram = SpectrumHistogram()
    histogram.add(sigma)
    assert sum(histogram.counts) == len(sigma)
    spectrum = histogram.spectrum()
    exact = np.sort((sigma / sigma.norm()).numpy())
    copies = (spectrum.weight * len(exact)).round().long()
    kept = np.sort(np.repeat(spectrum.sigma.numpy(), copies.numpy()))
    width = -LOWEST / BINS
    assert np.abs(np.log(kept) - np.log(exact.clip(np.exp(LOWEST)))).max() <= width


def test_merging_is_counting_together():
    rows = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))
    together, one, other = SpectrumHistogram(), SpectrumHistogram(), SpectrumHistogram()
    together.add(rows)
    one.add(rows[:2])
    other.add(rows[2:])
    one.merge(other)
    assert one == together
    assert one.matrices == 6


def test_what_is_not_a_spectrum_is_left_out():
    histogram = SpectrumHistogram()
    histogram.add(torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [3.0, 4.0]]))
    assert histogram.matrices == 1
    assert sum(histogram.counts) == 2
    with pytest.raises(ValueError, match="the histogram is empty"):
        SpectrumHistogram().spectrum()


def test_spectra_come_back_from_a_file_of_a_few_kilobytes(tmp_path):
    histogram = SpectrumHistogram()
    histogram.add(torch.rand(50, 768, generator=torch.Generator().manual_seed(0)))
    save_spectra(tmp_path / "spectra.json", {(768, 3072): histogram, (2, 3): SpectrumHistogram()})
    assert load_spectra(tmp_path / "spectra.json") == {
        (768, 3072): histogram,
        (2, 3): SpectrumHistogram(),
    }
    assert (tmp_path / "spectra.json").stat().st_size < 8000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "lightning_root spectra 1"}',
        '{"format": "lightning_root spectra 1", "spectra": {"wide": {}}}',
        '{"format": "lightning_root spectra 1", "spectra": {"2x3": [1]}}',
    ],
)
def test_a_damaged_file_of_spectra_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        load_spectra(tmp_path / "x.json")


@pytest.mark.parametrize(("key", "value"), [("bins", 300), ("lowest", -12.0)])
def test_a_file_that_counts_in_other_bins_is_refused(tmp_path, key, value):
    """Its counts would be read as singular values that nobody measured."""
    save_spectra(tmp_path / "x.json", {(2, 3): SpectrumHistogram()})
    values = json.loads((tmp_path / "x.json").read_text())
    (tmp_path / "x.json").write_text(json.dumps(values | {key: value}))
    with pytest.raises(ValueError, match=r"`lowest` -16, got .*capture the spectra again"):
        load_spectra(tmp_path / "x.json")


def test_a_histogram_with_too_many_counts_is_refused(tmp_path):
    save_spectra(tmp_path / "x.json", {(2, 3): SpectrumHistogram()})
    values = json.loads((tmp_path / "x.json").read_text())
    values["spectra"]["2x3"]["counts"] = [1] * 300
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="needs 240 counts"):
        load_spectra(tmp_path / "x.json")


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (512, 2048), (16384, 53248)])
@pytest.mark.parametrize("steps", [3, 5, 8])
def test_the_model_of_training_is_a_distribution_on_the_unit_interval(shape, steps):
    spectrum = training_model(*shape, steps)
    assert spectrum.weight.sum().item() == pytest.approx(1)
    assert (spectrum.weight > 0).all()
    assert 0 < spectrum.sigma.min()
    assert spectrum.sigma.max() <= 1


def test_singular_values_too_small_to_tell_apart_come_back_from_a_file_too(tmp_path):
    """They are counted in the first bin, so that nothing is left out before it."""
    histogram = SpectrumHistogram()
    histogram.add(torch.tensor([[1.0, 1e-3, 1e-12]], dtype=torch.float64))
    save_spectra(tmp_path / "x.json", {(3, 4): histogram})
    assert histogram.counts[0] == 1
    assert load_spectra(tmp_path / "x.json") == {(3, 4): histogram}


@pytest.mark.parametrize(
    "change", [{"first": -1, "counts": [0] * 241}, {"counts": [-1] + [0] * 239, "first": 0}]
)
def test_counts_that_cannot_be_are_refused(change):
    with pytest.raises(ValueError, match="needs 240 counts >= 0"):
        SpectrumHistogram.from_dict({"matrices": 1, **change})
