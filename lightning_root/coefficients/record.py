"""A coefficient set with its source and certificate, and files of such sets."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from lightning_root._files import read_json, write_json
from lightning_root.coefficients.certificate import bfloat16_error, output_range, stable_input
from lightning_root.coefficients.shapes import Shape
from lightning_root.coefficients.spectra import Spectrum, marchenko_pastur
from lightning_root.functional import Triple, as_schedule

FORMAT: Final = "lightning_root coefficients 1"

# Sets that send a singular value in [0, 1] above this are refused; sound ones stay below 1.3.
BOUND: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """A coefficient set with where it comes from and what it can do.

    Args:
        triples: One (a, b, c) per step.
        source: Where the numbers come from, in words.
        certificate: Exact range (low, high) of p_T over [0, 1].
        shape: (m, n) of the matrices it is for, with m <= n; None for any.
        spectrum: What `mse` was computed on, in words.
        mse: Mean of (p_T(sigma) - 1)^2 over that spectrum; None where there is none.
    """

    triples: tuple[Triple, ...]
    source: str
    certificate: tuple[float, float]
    shape: Shape | None = None
    spectrum: str | None = None
    mse: float | None = None

    @property
    def steps(self) -> int:
        """T, the number of iterations."""
        return len(self.triples)

    @cached_property
    def stable_up_to(self) -> float:
        """Largest input that p_T keeps within [-2, 2]; round-off must stay below it."""
        return stable_input(self.triples, BOUND)

    @cached_property
    def bfloat16_error(self) -> float:
        """Error of bfloat16 arithmetic: root mean square per singular direction."""
        return bfloat16_error(self.triples)

    def to_json(self) -> str:
        """All of it as one JSON object, which `from_json` reads back."""
        return json.dumps(self.as_dict(), indent=1)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "shape": self.shape,
            "steps": self.steps,
            "triples": self.triples,
            "source": self.source,
            "spectrum": self.spectrum,
            "mse": self.mse,
            "range": self.certificate,
            "stable_up_to": self.stable_up_to,
            "bfloat16_error": self.bfloat16_error,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, trusted: bool = False) -> "Coefficients":
        """Read what `as_dict` wrote, or raise ValueError; the certificate is computed again.

        Args:
            values: At least `triples`.
            trusted: Take a set that is unbounded, too.
        """
        if not isinstance(values, Mapping) or "triples" not in values:
            raise ValueError("a coefficient set needs `triples`, one (a, b, c) per step")
        shape, mse, spectrum = (values.get(name) for name in ("shape", "mse", "spectrum"))
        if not (spectrum is None or isinstance(spectrum, str)):
            raise ValueError(f"`spectrum` must be words or null, got {spectrum!r}")
        source = str(values.get("source") or "a file")
        return replace(
            certified(as_schedule(values["triples"]), source, trusted=trusted),
            shape=None if shape is None else _shape(shape),
            spectrum=spectrum,
            mse=None if mse is None else float(mse),
        )

    @classmethod
    def from_json(cls, text: str) -> "Coefficients":
        """Read what `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    def __str__(self) -> str:
        """One line: steps, source and range."""
        low, high = self.certificate
        return f"{self.steps} steps, {self.source}; p_T in [{low:.3g}, {high:.3g}] on [0, 1]"


def _shape(sizes: Any) -> Shape:
    """Return two sizes from a file, the smaller first, or raise ValueError."""
    whole = isinstance(sizes, list | tuple) and all(type(size) is int for size in sizes)
    if not whole or len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(f"`shape` must be two sizes >= 1 or null, got {sizes!r}")
    return min(sizes), max(sizes)


def certified(
    triples: tuple[Triple, ...],
    source: str,
    *,
    shape: Shape | None = None,
    spectrum: Spectrum | None = None,
    trusted: bool = False,
) -> Coefficients:
    """Certify a set; raise ValueError if p_T leaves [-2, 2] on [0, 1], unless it is trusted."""
    low, high = output_range(triples)
    if max(-low, high) > BOUND and not trusted:
        raise ValueError(
            f"`coefficients` ({source}, {len(triples)} steps) are unbounded: they map singular "
            f"values in [0, 1] to [{low:.3g}, {high:.3g}], outside [-{BOUND:g}, {BOUND:g}]. Take "
            'fewer steps (`ns_steps`) or another set, for example "adaptive"'
        )
    if spectrum is None and shape is not None:  # what `mse` is computed on
        spectrum = marchenko_pastur(*shape)
    return Coefficients(
        triples=triples,
        source=source,
        certificate=(low, high),
        shape=shape,
        spectrum=spectrum.name if spectrum is not None else None,
        mse=spectrum.mean_square_error(triples) if spectrum is not None else None,
    )


def save_coefficients(path: str | Path, coefficients: Iterable[Coefficients]) -> None:
    """Write coefficient sets to a JSON file, which `coefficients=` and `load_coefficients` read.

    Args:
        path: The file; it is replaced as a whole or not at all.
        coefficients: Sets for any shapes and numbers of steps.
    """
    rows = [entry.as_dict() for entry in coefficients]
    write_json(path, {"format": FORMAT, "coefficients": rows})


def load_coefficients(path: str | Path) -> list[Coefficients]:
    """Read the sets of a JSON file; certificates are computed again.

    Args:
        path: A file that `save_coefficients` wrote.

    Returns:
        All sets, in their order.

    Raises:
        ValueError: If the file is missing or malformed, or a set in it is unbounded.
    """
    values = read_json(path)
    rows = values.get("coefficients") if isinstance(values, Mapping) else None
    if not isinstance(rows, list) or not rows or values.get("format") != FORMAT:
        raise ValueError(
            f"`{path}` is not a file of coefficients: it needs `format` {FORMAT!r} and a list "
            "`coefficients`. `python -m lightning_root coefficients fit --output FILE` writes one"
        )
    try:
        return [Coefficients.from_dict(row) for row in rows]
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"`{path}` has a malformed entry: {error}") from error
