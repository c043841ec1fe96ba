"""Coefficients that follow the captured spectra: what to look at, what to fit, when to swap."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lightning_root.coefficients import Coefficients, lookup, save_coefficients, save_spectra
from lightning_root.coefficients.lookup import OTHERWISE
from lightning_root.coefficients.shapes import parse_shape, shape_text
from lightning_root.diagnostics.memory import Refit, SpectrumMemory, promise, refit, target
from lightning_root.diagnostics.spectrum import Matrix, Shape, in_turn, matrices_by_shape
from lightning_root.optim import ROOT

LONGEST_FIT: Final = 12
"""Most Newton-Schulz steps that a fit can be made for."""

SPECTRA: Final = "spectra.json"
COEFFICIENTS: Final = "coefficients.json"

_COUNTS: Final = ("captures", "fits", "swaps")


@dataclass
class Adaptation:
    """The memory of all shapes, and the rules by which it turns into coefficients of a ROOT.

    Equal captures make equal decisions, on every rank and after a resume.

    Args:
        min_gain: By which share the error must fall for a fit, and for its use.
        captured_share: Weight of the captured spectrum in what is fitted to.
        max_dim: Largest smaller side of a matrix that is captured.
        captures: Steps looked at.
        fits: Fits made.
        swaps: Fits that were put to use.
        memory: What is known of each shape.
    """

    min_gain: float
    captured_share: float
    max_dim: int
    captures: int = 0
    fits: int = 0
    swaps: int = 0
    memory: dict[Shape, SpectrumMemory] = field(default_factory=dict)

    def wanted(self, optimizer: ROOT) -> dict[Shape, Matrix]:
        """One matrix per shape to look at next, another one each time."""
        matrices = self._matrices(optimizer)
        return {shape: in_turn(matrices[shape], self.captures) for shape in matrices}

    def add(self, found: Mapping[Shape, Tensor]) -> None:
        """Count one capture: singular values by shape."""
        for shape in sorted(found):
            self.memory.setdefault(shape, SpectrumMemory()).add(found[shape])
        self.captures += 1

    def due(self, optimizer: ROOT) -> Shape | None:
        """The one shape to fit now, if any: where a fit is sure to pay, and takes away most error.

        Once a generation at most, in case a fit does not keep what was promised.
        """
        gains = {}
        for shape, matrices in self._matrices(optimizer).items():
            known = self.memory.get(shape)
            if known is None or known.fitted:
                continue
            wanted = target(shape, known.recent().spectrum(), self.captured_share)
            current = in_use(optimizer, shape).triples
            gain = promise(wanted, current)
            if gain > self.min_gain * wanted.mean_square_error(current):
                gains[shape] = gain * shape[0] * len(matrices)  # of all singular values together
        return max(gains, key=lambda shape: (gains[shape], shape), default=None)

    def error(self, optimizer: ROOT, shape: Shape) -> float:
        """Mean square error, on the captured spectrum, of what the shape uses now."""
        captured = self.memory[shape].recent().spectrum()
        return captured.mean_square_error(in_use(optimizer, shape).triples)

    def fit(self, optimizer: ROOT, shape: Shape) -> Refit:
        """New coefficients for a shape; nothing is changed yet."""
        captured = self.memory[shape].recent().spectrum()
        return refit(shape, captured, in_use(optimizer, shape).triples, self.captured_share)

    def settle(self, optimizer: ROOT, shape: Shape, result: Refit) -> bool:
        """Put a fit to use if it is worth it; say whether it was."""
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
        """Write what was captured and what is in use, if there is any; the names of the files."""
        if not self.memory:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        spectra = {shape: self.memory[shape].recent() for shape in sorted(self.memory)}
        save_spectra(folder / SPECTRA, spectra)
        coefficients = self._special(optimizer)
        if not coefficients:
            return [SPECTRA]
        save_coefficients(folder / COEFFICIENTS, coefficients)
        return [SPECTRA, COEFFICIENTS]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        memory = {shape_text(shape): known.as_dict() for shape, known in self.memory.items()}
        return {**{name: getattr(self, name) for name in _COUNTS}, "memory": memory}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        counts = {name: int(state_dict[name]) for name in _COUNTS}
        memory: Mapping[str, Any] = state_dict["memory"]
        self.memory = {parse_shape(k): SpectrumMemory.from_dict(memory[k]) for k in memory}
        for name, count in counts.items():
            setattr(self, name, count)

    def _matrices(self, optimizer: ROOT) -> dict[Shape, list[Matrix]]:
        """What can be captured; a single row has nothing to fit."""
        found = matrices_by_shape(optimizer, refittable(optimizer))
        return {shape: found[shape] for shape in sorted(found) if 1 < shape[0] <= self.max_dim}

    def _special(self, optimizer: ROOT) -> list[Coefficients]:
        """The coefficients of every shape that has its own, with their error where captured."""
        mappings = [g["coefficients"] for g in refittable(optimizer)]
        keys = {key for mapping in mappings if isinstance(mapping, Mapping) for key in mapping}
        shapes = sorted(parse_shape(key) for key in keys - {OTHERWISE})
        return [self._described(in_use(optimizer, shape), shape) for shape in shapes]

    def _described(self, coefficients: Coefficients, shape: Shape) -> Coefficients:
        if shape not in self.memory:
            return replace(coefficients, shape=shape)
        captured = self.memory[shape].recent()
        name = f"{captured.matrices} matrices captured in training"
        error = captured.spectrum().mean_square_error(coefficients.triples)
        source = "fitted in training"
        return replace(coefficients, shape=shape, source=source, spectrum=name, mse=error)


def refittable(optimizer: ROOT) -> list[dict[str, Any]]:
    """Groups whose coefficients are not the user's own choice; all of one number of steps."""
    groups = [g for g in optimizer.param_groups if g["role"] == "root" and _is_adaptive(g)]
    return [group for group in groups if group["ns_steps"] == groups[0]["ns_steps"]]


def in_use(optimizer: ROOT, shape: Shape) -> Coefficients:
    """What ROOT orthogonalizes a refittable shape with at the next step."""
    groups = refittable(optimizer)
    group = groups[0]
    if len(groups) > 1:
        group = next((g for g in groups if shape in matrices_by_shape(optimizer, [g])), group)
    return lookup(shape, group["coefficients"], group["ns_steps"])


def _is_adaptive(group: Mapping[str, Any]) -> bool:
    given = group["coefficients"]
    name = given.get(OTHERWISE, "adaptive") if isinstance(given, Mapping) else given
    return bool(name == "adaptive" and group["ns_steps"] <= LONGEST_FIT)
