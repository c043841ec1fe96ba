"""What is known of one shape's singular values, and whether new coefficients would do better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from lightning_root.coefficients import (
    Spectrum,
    SpectrumHistogram,
    fit_coefficients,
    log_uniform,
    marchenko_pastur,
    mixture,
)
from lightning_root.coefficients.fit import is_bounded, minimax_schedules
from lightning_root.functional import Triple

CAUTION: Final = 0.03
"""Share of the log-uniform spectrum in what is fitted to, as in the default coefficients."""

GENERATION: Final = 16
"""Most captures after which older ones begin to be forgotten."""


@dataclass
class SpectrumMemory:
    """Captured singular values of one shape, in two generations of captures; older are forgotten.

    Generations are short at first (1, 1, 2, 4, 8, then 16 captures), because spectra move most in
    the first hundred steps. All numbers are whole, so that what was saved and loaded is the same.

    Args:
        newer: The present generation.
        older: The one before.
        earlier: Number of captures before the present generation.
        fitted: Whether a fit has been made in the present generation.
    """

    newer: SpectrumHistogram = field(default_factory=SpectrumHistogram)
    older: SpectrumHistogram = field(default_factory=SpectrumHistogram)
    earlier: int = 0
    fitted: bool = False

    def add(self, singular_values: Tensor) -> None:
        """Count one capture, in a new generation if the present one is full."""
        if self.newer.matrices >= min(max(1, self.earlier), GENERATION):
            self.earlier += self.newer.matrices
            self.older, self.newer, self.fitted = self.newer, SpectrumHistogram(), False
        self.newer.add(singular_values)

    def recent(self) -> SpectrumHistogram:
        """Both generations together."""
        both = SpectrumHistogram()
        both.merge(self.older)
        both.merge(self.newer)
        return both

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "newer": self.newer.as_dict(),
            "older": self.older.as_dict(),
            "earlier": self.earlier,
            "fitted": self.fitted,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SpectrumMemory":
        """Read what `as_dict` wrote."""
        newer, older = (SpectrumHistogram.from_dict(values[key]) for key in ("newer", "older"))
        return cls(newer, older, int(values["earlier"]), bool(values["fitted"]))


def target(shape: tuple[int, int], captured: Spectrum, captured_share: float) -> Spectrum:
    """What to fit to: the captured spectrum, the Gaussian one, and some log-uniform caution.

    Args:
        shape: (m, n), m <= n.
        captured: The live spectrum.
        captured_share: Its weight beside the Gaussian one, in (0, 1].
    """
    share = captured_share * (1.0 - CAUTION)
    rest = 1.0 - CAUTION - share
    return mixture((share, captured), (rest, marchenko_pastur(*shape)), (CAUTION, log_uniform()))


def promise(wanted: Spectrum, current: Sequence[Triple]) -> float:
    """By how much the best of some known schedules beats the current one; may be negative.

    A fit starts from such schedules and ends below them, so where this is positive a fit pays. It
    costs a thousandth of a fit, and after a fit it is negative until the spectrum has changed.
    Infinite where no schedule is known: in one or two steps all of them overshoot.
    """
    known = _known_schedules(len(current))
    if len(known) == 0:
        return math.inf
    return wanted.mean_square_error(current) - float(wanted.mean_square_errors(known).min())


@lru_cache(maxsize=16)
def _known_schedules(steps: int) -> Tensor:  # (k, T, 3)
    """Best for the worst singular value of an interval, as far as they are bounded."""
    bounded = [schedule for schedule in minimax_schedules(steps) if is_bounded(schedule)]
    return torch.tensor(bounded, dtype=torch.float64, device="cpu")


class Refit(NamedTuple):
    """New coefficients beside those in use; both errors are on the captured spectrum."""

    triples: tuple[Triple, ...]
    error: float
    error_before: float


def refit(
    shape: tuple[int, int],
    captured: Spectrum,
    current: Sequence[Triple],
    captured_share: float,
) -> Refit:
    """Fit coefficients, as many steps as are in use, to `target`; half a second.

    Args:
        shape: (m, n), m <= n.
        captured: The live spectrum.
        current: What is in use, one triple per step.
        captured_share: See `target`.
    """
    wanted = target(shape, captured, captured_share)
    fitted = fit_coefficients(shape, len(current), wanted, starts=[tuple(current)])
    return Refit(
        triples=fitted.triples,
        error=captured.mean_square_error(fitted.triples),
        error_before=captured.mean_square_error(current),
    )
