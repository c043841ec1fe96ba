"""Coefficients that follow captured spectra: which to capture, which to fit, when to swap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from lightning_root.coefficients import (
    Coefficients,
    Spectrum,
    SpectrumHistogram,
    fit_coefficients,
    log_uniform,
    lookup,
    marchenko_pastur,
    mixture,
    save_coefficients,
    save_spectra,
)
from lightning_root.coefficients.fit import is_bounded, minimax_schedules
from lightning_root.coefficients.lookup import OTHERWISE
from lightning_root.coefficients.shapes import parse_shape, shape_text
from lightning_root.diagnostics.spectrum import Matrix, Shape, matrices_by_shape, pick_matrix
from lightning_root.functional import Triple
from lightning_root.optim import ROOT

MAX_FIT_STEPS: Final = 12  # Newton-Schulz steps that a fit can be made for
# Share of the log-uniform spectrum in what is fitted to, as in the default coefficients: it keeps
# the values in view that a spectrum leaves out, where every step has its own triple
LOG_UNIFORM_SHARE: Final = 0.03
MAX_GENERATION: Final = 16  # captures after which older ones begin to be dropped
SPECTRA: Final = "spectra.json"
COEFFICIENTS: Final = "coefficients.json"
_COUNTS: Final = ("captures", "fits", "swaps")


@dataclass
class RecentSpectrum:
    """Captured singular values of one shape, in two generations of captures; older are dropped."""

    # Generations are short at first (1, 1, 2, 4, 8, then 16 captures), because spectra move most in
    # the first hundred steps. All numbers are whole, so that what was saved and loaded is the same.

    newer: SpectrumHistogram = field(default_factory=SpectrumHistogram)
    older: SpectrumHistogram = field(default_factory=SpectrumHistogram)
    earlier: int = 0  # captures before the newer generation
    fitted: bool = False  # in the newer generation

    def add(self, singular_values: Tensor) -> None:
        """Count one capture, in a new generation if the present one is full."""
        if self.newer.matrices >= min(max(1, self.earlier), MAX_GENERATION):
            self.earlier += self.newer.matrices
            self.older, self.newer, self.fitted = self.newer, SpectrumHistogram(), False
        self.newer.add(singular_values)

    def recent(self) -> SpectrumHistogram:
        """Return both generations together."""
        both = SpectrumHistogram()
        both.merge(self.older)
        both.merge(self.newer)
        return both

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        values = {"newer": self.newer.as_dict(), "older": self.older.as_dict()}
        return {**values, "earlier": self.earlier, "fitted": self.fitted}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RecentSpectrum":
        """Read what `as_dict` wrote."""
        newer, older = (SpectrumHistogram.from_dict(values[key]) for key in ("newer", "older"))
        return cls(newer, older, int(values["earlier"]), bool(values["fitted"]))


def fit_target(
    shape: Shape, captured: Spectrum, captured_share: float, extra: float = LOG_UNIFORM_SHARE
) -> Spectrum:
    """Mix the spectrum to fit to: the captured one, the Gaussian one, and `extra` log-uniform."""
    share = captured_share * (1.0 - extra)
    parts = [(share, captured), (1.0 - extra - share, marchenko_pastur(*shape))]
    parts = [part for part in [*parts, (extra, log_uniform())] if part[0] > 0.0]
    return captured if len(parts) == 1 else mixture(*parts)


def expected_gain(spectrum: Spectrum, current: Sequence[Triple]) -> float:
    """Return by how much the best of some known schedules beats the current one, or less than 0."""
    # A fit starts from such schedules and ends below them, so where this is positive a fit pays. It
    # costs a thousandth of a fit, and after a fit it is negative until the spectrum has changed.
    # Infinite where no schedule is known: in one or two steps all of them overshoot.
    known = _known_schedules(len(current))
    if len(known) == 0:
        return math.inf
    return spectrum.mean_square_error(current) - float(spectrum.mean_square_errors(known).min())


@lru_cache(maxsize=16)
def _known_schedules(steps: int) -> Tensor:  # (k, T, 3)
    """Return the bounded ones of the schedules that are best for the worst singular value."""
    bounded = [schedule for schedule in minimax_schedules(steps) if is_bounded(schedule)]
    return torch.tensor(bounded, dtype=torch.float64, device="cpu")


class FitResult(NamedTuple):
    """New coefficients, their error on the captured spectrum, and that of those in use."""

    triples: tuple[Triple, ...]
    error: float
    error_before: float


def refit(
    shape: Shape, captured: Spectrum, current: Sequence[Triple], captured_share: float
) -> FitResult:
    """Fit coefficients, as many steps as are in use, to `fit_target`; half a second."""
    spectrum = fit_target(shape, captured, captured_share)
    fitted = fit_coefficients(shape, len(current), spectrum, starts=[tuple(current)])
    errors = (captured.mean_square_error(triples) for triples in (fitted.triples, current))
    return FitResult(fitted.triples, *errors)


@dataclass
class Adaptation:
    """Recent spectra of all shapes, and the rules by which they become coefficients of a ROOT.

    Equal captures make equal decisions, on every rank and after a resume.
    """

    min_gain: float  # share by which the error must fall for a fit, and for its use
    captured_share: float  # of the captured spectrum in what is fitted to
    max_dim: int  # of the smaller side of a matrix that is captured
    captures: int = 0
    fits: int = 0
    swaps: int = 0  # fits that were put to use
    memory: dict[Shape, RecentSpectrum] = field(default_factory=dict)

    def next_matrices(self, optimizer: ROOT) -> dict[Shape, Matrix]:
        """Return one matrix per shape to capture next, another one each time."""
        matrices = self._matrices(optimizer)
        return {shape: pick_matrix(matrices[shape], self.captures) for shape in matrices}

    def add(self, found: Mapping[Shape, Tensor]) -> None:
        """Count one capture: singular values by shape."""
        for shape in sorted(found):
            self.memory.setdefault(shape, RecentSpectrum()).add(found[shape])
        self.captures += 1

    def shape_to_fit(self, optimizer: ROOT) -> Shape | None:
        """Return the one shape to fit now, if any: where a fit is sure to pay, and gains most."""
        # Once a generation at most, in case a fit does not keep what was promised.
        gains = {}
        for shape, matrices in self._matrices(optimizer).items():
            known = self.memory.get(shape)
            if known is None or known.fitted:
                continue
            spectrum = fit_target(shape, known.recent().spectrum(), self.captured_share)
            current = current_coefficients(optimizer, shape).triples
            gain = expected_gain(spectrum, current)
            if gain > self.min_gain * spectrum.mean_square_error(current):
                gains[shape] = gain * shape[0] * len(matrices)  # of all singular values together
        return max(gains, key=lambda shape: (gains[shape], shape), default=None)

    def error(self, optimizer: ROOT, shape: Shape) -> float:
        """Return the error, on the captured spectrum, of what the shape uses now."""
        current = current_coefficients(optimizer, shape).triples
        return self.memory[shape].recent().spectrum().mean_square_error(current)

    def fit(self, optimizer: ROOT, shape: Shape) -> FitResult:
        """Fit new coefficients for a shape; nothing is changed yet."""
        captured = self.memory[shape].recent().spectrum()
        current = current_coefficients(optimizer, shape).triples
        return refit(shape, captured, current, self.captured_share)

    def apply_fit(self, optimizer: ROOT, shape: Shape, result: FitResult) -> bool:
        """Put a fit to use if it is worth it, and return whether it was."""
        self.memory[shape].fitted = True
        self.fits += 1
        if not result.error < (1.0 - self.min_gain) * result.error_before:
            return False
        self.swaps += 1
        for group in refittable(optimizer):
            given = group["coefficients"]
            mapping = given if isinstance(given, Mapping) else {OTHERWISE: given}
            group["coefficients"] = {**mapping, shape_text(shape): result.triples}
        return True

    def write(self, folder: Path, optimizer: ROOT) -> list[str]:
        """Write what was captured and fitted, if anything; return the names of the files."""
        if not self.memory:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        spectra = {shape: self.memory[shape].recent() for shape in sorted(self.memory)}
        save_spectra(folder / SPECTRA, spectra)
        coefficients = self._fitted(optimizer)
        if not coefficients:
            return [SPECTRA]
        save_coefficients(folder / COEFFICIENTS, coefficients)
        return [SPECTRA, COEFFICIENTS]

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        memory = {shape_text(shape): known.as_dict() for shape, known in self.memory.items()}
        return {**{name: getattr(self, name) for name in _COUNTS}, "memory": memory}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        counts = {name: int(state_dict[name]) for name in _COUNTS}
        memory: Mapping[str, Any] = state_dict["memory"]
        self.memory = {parse_shape(k): RecentSpectrum.from_dict(memory[k]) for k in memory}
        vars(self).update(counts)

    def _matrices(self, optimizer: ROOT) -> dict[Shape, list[Matrix]]:
        """Return what can be captured; a single row has nothing to fit."""
        found = matrices_by_shape(optimizer, refittable(optimizer))
        return {shape: found[shape] for shape in sorted(found) if 1 < shape[0] <= self.max_dim}

    def _fitted(self, optimizer: ROOT) -> list[Coefficients]:
        """Return the coefficients of shapes that have their own, with their error if captured."""
        mappings = [g["coefficients"] for g in refittable(optimizer)]
        keys = {key for mapping in mappings if isinstance(mapping, Mapping) for key in mapping}
        shapes = sorted(parse_shape(key) for key in keys - {OTHERWISE})
        found = []
        for shape in shapes:
            entry = replace(current_coefficients(optimizer, shape), shape=shape)
            if shape in self.memory:
                captured = self.memory[shape].recent()
                name = f"{captured.matrices} matrices captured in training"
                error = captured.spectrum().mean_square_error(entry.triples)
                entry = replace(entry, source="fitted in training", spectrum=name, mse=error)
            found.append(entry)
        return found


def refittable(optimizer: ROOT) -> list[dict[str, Any]]:
    """Return groups whose coefficients are not the user's choice; all of one number of steps."""
    groups = [
        group
        for group in optimizer.param_groups
        if _is_adaptive(group) and matrices_by_shape(optimizer, [group])
    ]
    return [group for group in groups if group["ns_steps"] == groups[0]["ns_steps"]]


def current_coefficients(optimizer: ROOT, shape: Shape) -> Coefficients:
    """Return what ROOT orthogonalizes a refittable shape with at the next step."""
    groups = refittable(optimizer)
    group = groups[0]
    if len(groups) > 1:
        group = next((g for g in groups if shape in matrices_by_shape(optimizer, [g])), group)
    return lookup(shape, group["coefficients"], group["ns_steps"])


def _is_adaptive(group: Mapping[str, Any]) -> bool:
    given = group["coefficients"]
    name = given.get(OTHERWISE, "adaptive") if isinstance(given, Mapping) else given
    return bool(name == "adaptive" and group["ns_steps"] <= MAX_FIT_STEPS)
