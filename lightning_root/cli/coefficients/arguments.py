"""Words of the command line that several subcommands read: shapes, steps, spectra, files."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lightning_root.coefficients import (
    Spectrum,
    SpectrumHistogram,
    load_spectra,
    log_uniform,
    marchenko_pastur,
    training_model,
)
from lightning_root.coefficients.shapes import Shape, shape_text

THEORY: Final[Mapping[str, Callable[[Shape, int], Spectrum]]] = {
    "training": lambda shape, steps: training_model(*shape, steps),
    "gaussian": lambda shape, steps: marchenko_pastur(*shape),
    "log-uniform": lambda shape, steps: log_uniform(),
}
"""Spectra that need no measurement."""


@dataclass(frozen=True)
class Spectra:
    """Which singular values the matrices of each shape have.

    Args:
        choice: A name of `THEORY`, or the file that `captured` was read from.
        captured: Measured histograms by shape.
    """

    choice: str
    captured: Mapping[Shape, SpectrumHistogram] = field(default_factory=dict)

    @classmethod
    def read(cls, choice: str) -> "Spectra":
        """From what follows `--spectrum`.

        Raises:
            ValueError: If it is neither a name nor a file of spectra.
        """
        if choice in THEORY:
            return cls(choice)
        if not choice.endswith(".json"):
            raise ValueError(
                f"`--spectrum` must be one of {list(THEORY)} or a .json file of captured spectra, "
                f"got {choice!r}"
            )
        return cls(choice, load_spectra(choice))

    @property
    def description(self) -> str:
        """Whose singular values, in words."""
        return {
            "training": "the model of training",
            "gaussian": "Gaussian matrices",
            "log-uniform": "singular values spread evenly in log sigma over [0.001, 1]",
        }.get(self.choice, f"the singular values captured in {self.choice}")

    def shapes(self, given: Sequence[Shape]) -> list[Shape]:
        """The shapes asked for, each once; all captured ones if none is.

        Raises:
            ValueError: If there is none, or one was not captured.
        """
        if not given and not self.captured:
            raise ValueError("name at least one SHAPE, for example 768x3072")
        missing = [shape for shape in given if shape not in self.captured]
        if self.captured and missing:
            known = ", ".join(map(shape_text, self.captured))
            raise ValueError(
                f"`{self.choice}` holds no spectrum of {shape_text(missing[0])}; it has {known}"
            )
        return list(dict.fromkeys(given or self.captured))

    def of(self, shape: Shape, steps: int) -> Spectrum:
        """The spectrum of one shape, for schedules of `steps` triples."""
        if self.choice in THEORY:
            return THEORY[self.choice](shape, steps)
        histogram = self.captured[shape]
        count = histogram.matrices
        return histogram.spectrum(
            f"captured {shape_text(shape)} ({count} {'matrix' if count == 1 else 'matrices'})"
        )


def read_shape(text: str) -> Shape:
    """A shape written like 768x3072, in either order, as (m, n) with m <= n."""
    match = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"a shape is two whole numbers >= 1, written like 768x3072, got {text!r}"
        )
    m, n = sorted(map(int, match.groups()))
    return m, n


def read_steps(text: str) -> int:
    """A number of steps, at least 1."""
    if re.fullmatch(r"[1-9]\d?", text) is None:
        hint = "; shapes come before the options" if "x" in text else ""
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 99, got {text!r}{hint}")
    return int(text)


def read_output(text: str) -> Path:
    """A file that can be written, as far as its folder tells."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text!r} does not exist")
    return path


def read_json_output(text: str) -> Path:
    """A file to write, of the name that `coefficients=` takes for a file."""
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(
            f"must end in .json, by which `coefficients=` knows a file, got {text!r}"
        )
    return read_output(text)


def read_share(text: str) -> float:
    """A share above 0 and at most 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text!r}; 0.25 is the paper's")
    return share
