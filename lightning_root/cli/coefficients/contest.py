"""Several sets on the same singular values."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lightning_root.cli.coefficients.sets import is_bounded
from lightning_root.coefficients import Coefficients, Spectrum
from lightning_root.coefficients.shapes import Shape, shape_text


@dataclass(frozen=True)
class Contest:
    """Sets of the same length for the same shape.

    Args:
        shape: (m, n), m <= n.
        steps: T.
        spectrum: The singular values to be good at.
        sets: The sets by the name to show; None where there is none of this length and shape.
    """

    shape: Shape
    steps: int
    spectrum: Spectrum
    sets: Mapping[str, Coefficients | None]

    @property
    def title(self) -> str:
        """Shape and number of steps."""
        return f"{shape_text(self.shape)}, T = {self.steps}"

    @cached_property
    def errors(self) -> dict[str, float | None]:
        """Mean (p_T(sigma) - 1)^2 of each set."""
        return {
            name: None if entry is None else self.spectrum.mean_square_error(entry.triples)
            for name, entry in self.sets.items()
        }

    @cached_property
    def best(self) -> float:
        """The smallest error of a bounded set."""
        bounded = (
            self.errors[name] for name, entry in self.sets.items() if entry and is_bounded(entry)
        )
        return min(error for error in bounded if error is not None)
