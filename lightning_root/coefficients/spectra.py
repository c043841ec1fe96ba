"""Distributions of singular values, as quadratures: what a coefficient set is fitted to.

A matrix divided by its Frobenius norm has singular values in [0, 1]. A `Spectrum` says how they are
distributed: by theory (Gaussian matrices), by measurement (a `SpectrumHistogram`, which takes the
singular values of any number of matrices of one shape), by caution (log-uniform), or as a mixture.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root._files import read_json, write_json
from lightning_root.coefficients.certificate import compose
from lightning_root.coefficients.shapes import Shape, parse_shape, shape_text
from lightning_root.functional import Triple

BINS: Final = 240
LOWEST: Final = -16.0  # natural logarithm of the smallest value that a histogram tells apart
FORMAT: Final = "lightning_root spectra 1"


@dataclass(frozen=True)
class Spectrum:
    """A distribution of singular values of Frobenius-normalised matrices.

    Args:
        sigma: Singular values in [0, 1], float64, shape (nodes,).
        weight: Share of each node, float64, shape (nodes,), sum 1.
        name: What it is the spectrum of, in words.
    """

    sigma: Tensor
    weight: Tensor
    name: str = "given"

    def mean_square_error(self, triples: Sequence[Triple]) -> float:
        """Mean of (p_T(sigma) - 1)^2: the error of the paper's Table 1."""
        schedules = torch.tensor([triples], dtype=torch.float64, device="cpu")
        return float(self.mean_square_errors(schedules))

    def mean_square_errors(self, schedules: Tensor) -> Tensor:
        """Compute `mean_square_error` of many schedules: float64, (k, T, 3) -> (k,)."""
        outputs = compose(schedules, self.sigma)
        return (self.weight * (outputs - 1.0).square()).sum(-1)


def marchenko_pastur(rows: int, columns: int, nodes: int = 256) -> Spectrum:
    """Singular values of a Gaussian matrix divided by its Frobenius norm, without drawing any.

    With y = m / n and the substitution x = 1 + y + 2 sqrt(y) cos(phi), the Marchenko-Pastur law of
    the eigenvalues of X X' / n has the density 2 sin(phi)^2 / (pi x) on (0, pi), smooth even for
    square matrices. The singular values are sqrt(x / m).

    Args:
        rows: m; the smaller dimension (the two are exchanged when it is not).
        columns: n.
        nodes: Number of midpoints; 256 gives means of smooth functions to about 1e-5.

    Example:
        >>> from lightning_root.coefficients import marchenko_pastur
        >>> gaussian = marchenko_pastur(64, 256)
        >>> round(float(64 * (gaussian.weight * gaussian.sigma**2).sum()), 6)  # Frobenius norm
        1.0
    """
    m, n = sorted((rows, columns))
    ratio = m / n
    phi = (torch.arange(nodes, dtype=torch.float64, device="cpu") + 0.5) * (math.pi / nodes)
    eigenvalue = 1.0 + ratio + 2.0 * math.sqrt(ratio) * phi.cos()
    weight = phi.sin().square() / eigenvalue
    sigma = (eigenvalue / m).sqrt().clamp_(max=1.0)
    return Spectrum(sigma, weight / weight.sum(), f"Gaussian {m}x{n}")


def log_uniform(low: float = 1e-3, high: float = 1.0, nodes: int = 128) -> Spectrum:
    """Singular values spread evenly in log sigma over [low, high], with equal weights.

    Args:
        low: Smallest singular value, above 0.
        high: Largest singular value.
        nodes: How many represent them.
    """
    places = (torch.arange(nodes, dtype=torch.float64, device="cpu") + 0.5) / nodes
    sigma = (math.log(low) + places * math.log(high / low)).exp()
    return Spectrum(sigma, torch.full_like(sigma, 1.0 / nodes), f"log-uniform [{low:g}, {high:g}]")


def log_normal(median: float, spread: float, nodes: int = 128) -> Spectrum:
    """Singular values whose logarithm is Gaussian; what exceeds 1 is put at 1.

    Args:
        median: Median singular value.
        spread: Standard deviation of log sigma.
        nodes: Number of equally likely nodes.
    """
    sigma = _log_normal(median, spread, nodes).clamp_(max=1.0)
    return Spectrum(sigma, torch.full_like(sigma, 1.0 / nodes), f"log-normal {median:.3g}")


def _log_normal(median: float, spread: float, nodes: int) -> Tensor:
    """Return equally likely nodes of a log-normal law, shape (nodes,)."""
    places = (torch.arange(nodes, dtype=torch.float64, device="cpu") + 0.5) / nodes
    deviate: Tensor = torch.special.ndtri(places)
    return (math.log(median) + spread * deviate).exp()


def mixture(*parts: tuple[float, Spectrum]) -> Spectrum:
    """Several spectra with their shares, which are scaled to the sum 1.

    Args:
        parts: Pairs of a share and a spectrum.

    Example:
        >>> from lightning_root.coefficients import log_uniform, marchenko_pastur, mixture
        >>> mixture((0.9, marchenko_pastur(64, 256)), (0.1, log_uniform())).name
        '90 % Gaussian 64x256, 10 % log-uniform [0.001, 1]'
    """
    total = sum(share for share, _ in parts)
    return Spectrum(
        torch.cat([spectrum.sigma for _, spectrum in parts]),
        torch.cat([spectrum.weight * (share / total) for share, spectrum in parts]),
        ", ".join(f"{100 * share / total:.3g} % {spectrum.name}" for share, spectrum in parts),
    )


def scaled_gaussian(
    rows: int, columns: int, median: float = 0.2, spread: float = 1.4, nodes: int = 200
) -> Spectrum:
    """Gaussian singular values times a log-normal factor: a model of momentum in training.

    A few directions hold most of the norm there, and the bulk is smaller and wider than a Gaussian
    matrix's. Products are collected in `nodes` bins of log sigma from 1e-6 to 1, with their means.

    Args:
        rows: m, in either order.
        columns: n.
        median: Median of the factor.
        spread: Standard deviation of its logarithm.
        nodes: Number of bins; empty ones are left out.
    """
    lowest = math.log(1e-6)
    m, n = sorted((rows, columns))
    gaussian = marchenko_pastur(rows, columns, nodes=400)
    factor = _log_normal(median, spread, nodes=64)
    logarithm = (factor[:, None] * gaussian.sigma).log().clamp_(lowest, 0.0).flatten()
    share = (gaussian.weight / len(factor)).expand(len(factor), -1).flatten()
    place = (nodes * (1.0 - logarithm / lowest)).long().clamp_(max=nodes - 1)
    weight = share.new_zeros(nodes).index_add_(0, place, share)
    total = share.new_zeros(nodes).index_add_(0, place, share * logarithm)
    used = weight > 0
    sigma = (total[used] / weight[used]).exp()
    return Spectrum(sigma, weight[used], f"scaled Gaussian {m}x{n}")


def training_model(rows: int, columns: int, steps: int = 5) -> Spectrum:
    """Spectrum that the default coefficients are fitted to, where only the shape is known.

    Part is the Gaussian law, as at initialization or in pure noise, and part `scaled_gaussian`;
    3 % is log-uniform, to keep every singular value above 1e-3 in view. The parameters were set on
    momentum captured from GPTs of width 128 to 768 and vision transformers of width 128 to 320, and
    on Gaussian matrices, so that no published schedule is better on either kind. Large and wide
    matrices get more of the Gaussian law, up to 80 %: what else they have, few steps cannot lift.

    Args:
        rows: m, in either order.
        columns: n.
        steps: T of the schedule that is to be fitted. With 6 steps and more all that can be lifted
            is, and what is left to win is accuracy on the Gaussian part.
    """
    m, n = sorted((rows, columns))
    # Share of the Gaussian law for square matrices of up to 256 rows, what every doubling of the
    # rows adds to it, and the median of the factor in `scaled_gaussian`.
    share, growth, median = (
        (0.1, 0.2, 0.15) if steps < 5 else (0.2, 0.2, 0.2) if steps == 5 else (0.7, 0.05, 0.2)
    )
    doublings = max(0.0, math.log2(m / 256.0))
    gaussian = min(0.8, share + growth * doublings + 0.4 * (1.0 - m / n))
    spread = 1.4 + 0.4 * min(1.0, max(0.0, math.log2(320.0 / m))) * (steps <= 5)
    return mixture(
        (gaussian, marchenko_pastur(rows, columns)),
        (0.97 - gaussian, scaled_gaussian(rows, columns, median, spread)),
        (0.03, log_uniform()),
    )


@dataclass
class SpectrumHistogram:
    """Counts of log(sigma / ||.||_F) in 240 bins from -16 to 0.

    Args:
        counts: Number of singular values per bin.
        matrices: How many matrices they come from.

    Example:
        >>> import torch
        >>> from lightning_root.coefficients import SpectrumHistogram
        >>> histogram = SpectrumHistogram()
        >>> histogram.add(torch.linalg.svdvals(torch.eye(4)))
        >>> spectrum = histogram.spectrum()
        >>> spectrum.sigma.numel(), round(float(spectrum.sigma[0]), 2)  # four times 1/2
        (1, 0.5)
    """

    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    matrices: int = 0

    def add(self, singular_values: Tensor) -> None:
        """Count singular values (*batch, m), in any scale, but for zero and non-finite rows."""
        rows = singular_values.detach().to("cpu", torch.float64)
        rows = rows.reshape(-1, *rows.shape[-1:])
        norm = torch.linalg.vector_norm(rows, dim=1)
        rows, norm = rows[norm.isfinite() & (norm > 0)], norm[norm.isfinite() & (norm > 0)]
        logarithm = (rows / norm[:, None]).log().clamp_(LOWEST, 0.0)
        place = (BINS * (1.0 - logarithm / LOWEST)).long().clamp_(max=BINS - 1)
        added = torch.bincount(place.flatten(), minlength=BINS).tolist()
        self.counts = [old + new for old, new in zip(self.counts, added, strict=True)]
        self.matrices += len(rows)

    def merge(self, other: "SpectrumHistogram") -> None:
        """Add the counts of another histogram."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.matrices += other.matrices

    def spectrum(self, name: str = "captured") -> Spectrum:
        """Return the distribution that was measured; ValueError if nothing has been counted."""
        counts = torch.tensor(self.counts, dtype=torch.float64, device="cpu")
        if not counts.any():
            raise ValueError("the histogram is empty; `add` singular values first")
        places = (torch.arange(BINS, dtype=torch.float64, device="cpu") + 0.5) / BINS
        used = counts > 0
        sigma = (LOWEST * (1.0 - places[used])).exp()
        return Spectrum(sigma, counts[used] / counts.sum(), name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: from the first bin that is not empty."""
        first = next((i for i, count in enumerate(self.counts) if count), BINS)
        return {"matrices": self.matrices, "first": first, "counts": self.counts[first:]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SpectrumHistogram":
        """Read what `as_dict` wrote, or raise ValueError if the counts do not fit."""
        first, given = int(values["first"]), [int(count) for count in values["counts"]]
        if first < 0 or first + len(given) != BINS or min(given, default=0) < 0:
            raise ValueError(f"a spectrum needs {BINS} counts >= 0, got {first} + {len(given)}")
        return cls([0] * first + given, int(values["matrices"]))


def save_spectra(path: str | Path, spectra: Mapping[Shape, SpectrumHistogram]) -> None:
    """Write histograms to one JSON file, a few kilobytes a shape.

    Args:
        path: The file, replaced whole.
        spectra: Histograms by shape (m, n), m <= n.
    """
    rows = {shape_text(shape): histogram.as_dict() for shape, histogram in spectra.items()}
    write_json(path, {"format": FORMAT, "bins": BINS, "lowest": LOWEST, "spectra": rows})


def load_spectra(path: str | Path) -> dict[Shape, SpectrumHistogram]:
    """Histograms by shape (m, n), m <= n, as `save_spectra` wrote them.

    Args:
        path: The JSON file.

    Raises:
        ValueError: If the file is missing or malformed.
    """
    values = read_json(path)
    rows = values.get("spectra") if isinstance(values, Mapping) else None
    if not isinstance(rows, Mapping) or values.get("format") != FORMAT:
        raise ValueError(
            f"`{path}` is not a file of spectra: it needs `format` {FORMAT!r} and `spectra`, a "
            "histogram for each shape. `save_spectra` and `ROOTRefit` write one"
        )
    if (values.get("bins"), values.get("lowest")) != (BINS, LOWEST):
        raise ValueError(
            f"`{path}` counts in other bins: `bins` must be {BINS} and `lowest` {LOWEST:g}, got "
            f"{values.get('bins')!r} and {values.get('lowest')!r}; capture the spectra again"
        )
    try:
        return {parse_shape(key): SpectrumHistogram.from_dict(row) for key, row in rows.items()}
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"`{path}` has a malformed histogram: {error}") from error
