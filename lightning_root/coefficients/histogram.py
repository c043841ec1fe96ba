"""Measured spectra: histograms of log sigma / ||.||_F, small enough to save with a run.

A histogram takes the singular values of any number of matrices of one shape, is merged with others
by adding counts, and becomes a `Spectrum` for a fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lightning_root._files import read_json, write_json
from lightning_root.coefficients.shapes import parse_shape, shape_text
from lightning_root.coefficients.spectra import Spectrum

BINS: Final = 240
LOWEST: Final = -16.0
"""Natural logarithm of the smallest singular value that is told apart: 1.1e-7."""

FORMAT: Final = "lightning_root spectra 1"


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
        """Count the singular values of matrices, in any scale.

        Args:
            singular_values: Shape (*batch, m), one row per matrix; zero and non-finite rows are
                left out.
        """
        rows = (
            singular_values.detach()
            .to("cpu", torch.float64)
            .reshape(-1, *singular_values.shape[-1:])
        )
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
        """The distribution that was measured.

        Raises:
            ValueError: If nothing has been counted.
        """
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
        """Read what `as_dict` wrote.

        Raises:
            ValueError: If the counts do not fit.
        """
        first, given = int(values["first"]), [int(count) for count in values["counts"]]
        if first < 0 or first + len(given) != BINS or min(given, default=0) < 0:
            raise ValueError(f"a spectrum needs {BINS} counts >= 0, got {first} + {len(given)}")
        return cls([0] * first + given, int(values["matrices"]))


def save_spectra(path: str | Path, spectra: Mapping[tuple[int, int], SpectrumHistogram]) -> None:
    """Write histograms to one JSON file, a few kilobytes a shape.

    Args:
        path: The file, replaced whole.
        spectra: Histograms by shape (m, n), m <= n.
    """
    rows = {shape_text(shape): histogram.as_dict() for shape, histogram in spectra.items()}
    write_json(path, {"format": FORMAT, "bins": BINS, "lowest": LOWEST, "spectra": rows})


def load_spectra(path: str | Path) -> dict[tuple[int, int], SpectrumHistogram]:
    """Read what `save_spectra` wrote.

    Args:
        path: The JSON file.

    Returns:
        Histograms by shape (m, n), m <= n.

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
