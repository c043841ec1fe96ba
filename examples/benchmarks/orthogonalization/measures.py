"""Schedules, held-out singular values, and the error that each schedule leaves on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from examples.benchmarks.capture_momentum import load_captured, save_captured
from lightning_root.coefficients import (
    Coefficients,
    SpectrumHistogram,
    fit_coefficients,
    log_uniform,
    lookup,
    marchenko_pastur,
    mixture,
    output_range,
)
from lightning_root.coefficients.published import (
    AUTHORS_SCRIPT,
    MUON,
    NEWTON_SCHULZ,
    PUBLISHED,
    TABLE_1,
)
from lightning_root.coefficients.shapes import Shape
from lightning_root.functional import Triple

LARGEST_INPUT = 1.02  # round-off pushes singular values past 1 by less than this


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of matrix, one number of steps, all schedules.

    Args:
        source: "gaussian", or the name of a captured run.
        shape: (m, n), m <= n.
        steps: T.
        triples: Schedule by column name.
        errors: Mean of (sigma_out - 1)^2 by column name; infinite where it overflows.
        highest: Largest p_T(sigma) for sigma in [0, 1.02] by column name.
    """

    source: str
    shape: Shape
    steps: int
    triples: dict[str, tuple[Triple, ...]]
    errors: dict[str, float] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """The shape in words, "256x1024"."""
        return f"{self.shape[0]}x{self.shape[1]}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The momentum of one captured run.

    Args:
        name: Its file's name.
        about: What was trained, and how.
        early: Singular values (matrices, m) up to half of the run by shape, for fits.
        late: Those of its last quarter, held out.
    """

    name: str
    about: dict[str, Any]
    early: dict[Shape, Tensor]
    late: dict[Shape, Tensor]


def float32_error(triples: Sequence[Triple], sigma: Tensor) -> float:
    """Mean of (p_T(sigma) - 1)^2, with p_T in float32 as in the iteration.

    Args:
        triples: One (a, b, c) per step.
        sigma: Singular values of Frobenius-normalised matrices, any shape.
    """
    x = sigma.float()
    for a, b, c in triples:
        square = x * x
        x = x * (a + square * (b + square * c))
    error = float((x.double() - 1.0).square().mean())
    return error if math.isfinite(error) else math.inf


def gaussian_matrix(shape: Shape, seed: int) -> Tensor:
    """A float32 matrix of independent standard normal entries, another one for each shape."""
    generator = torch.Generator().manual_seed(seed + 100_000 * shape[0] + shape[1])
    return torch.randn(shape, generator=generator)


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values (m,) of a matrix (m, n) over its Frobenius norm, from its Gram matrix.

    In float64 the eigenvalues of the Gram matrix give singular values to about 1e-8 of the largest,
    a thousandth of the smallest that a square Gaussian matrix of size 8192 is expected to have.
    """
    x = matrix.double()
    squares = torch.linalg.eigvalsh(x @ x.mT).clamp_(min=0.0)
    sigma: Tensor = (squares / squares.sum()).sqrt()
    return sigma


def gaussian_spectra(shapes: Sequence[Shape], folder: Path, seed: int) -> dict[Shape, Tensor]:
    """Singular values (1, m) of one Gaussian matrix per shape, drawn now or kept from before."""
    path = folder / f"gaussian_{seed}.npz"
    kept = load_captured(path)[0] if path.is_file() else {}
    for m, n in tqdm(shapes, desc="Gaussian matrices", unit="shape"):
        if (0, f"{m}x{n}") not in kept:
            sigma = singular_values(gaussian_matrix((m, n), seed))
            kept[0, f"{m}x{n}"] = sigma[None].float().numpy()
            save_captured(path, kept, {"title": "Gaussian matrices", "seed": seed})
    return {(m, n): torch.from_numpy(kept[0, f"{m}x{n}"]) for m, n in shapes}


def load_run(path: Path) -> Run:
    """Read a captured run and split it in time.

    Raises:
        ValueError: If nothing was captured in the first half.
    """
    captured, about = load_captured(path)
    last = max(step for step, _ in captured)
    parts: dict[str, dict[str, list[np.ndarray[Any, Any]]]] = {"early": {}, "late": {}}
    for step, shape in sorted(captured, key=lambda key: (as_shape(key[1]), key[0])):
        part = "early" if step <= last / 2 else "late" if step >= 0.75 * last else None
        if part:
            parts[part].setdefault(shape, []).append(captured[step, shape])
            about[part] = sorted({*about.get(part, []), step})
    if not parts["early"]:
        raise ValueError(f"`{path}` holds no step up to {last / 2:g}; capture earlier ones, `--at`")
    early, late = (
        {as_shape(key): torch.from_numpy(np.concatenate(rows)) for key, rows in part.items()}
        for part in parts.values()
    )
    return Run(name=path.stem, about=about, early=early, late=late)


def as_shape(text: str) -> Shape:
    """Read "2048x8192", smaller size first in the result.

    Raises:
        ValueError: If it is not two whole numbers.
    """
    m, n = sorted(int(size) for size in text.split("x"))
    return m, n


def schedules(shape: Shape, steps: int) -> dict[str, tuple[Triple, ...]]:
    """By column name: what others have published, the default, and ours fitted to the shape.

    The paper's method gives a triple for any shape and number of steps, so it is fitted where
    Table 1 has none. Schedules of several triples are cut to `steps`, or continued with the
    classical step.
    """
    paper = TABLE_1.get(shape) if steps == 5 else None
    if paper is None:
        paper = fit_coefficients(shape, steps, per_step=False).triples[0]
    cans, polar, quintic = (
        PUBLISHED[name].triples for name in ("cans", "polar_express", "quintic")
    )
    classical = (NEWTON_SCHULZ,) * steps
    columns: dict[str, tuple[Triple, ...]] = {
        "muon": (MUON,) * steps,
        "paper": (paper,) * steps,
        "published": (AUTHORS_SCRIPT.get(shape, MUON),) * steps,
        "polar_express": (*polar, *classical)[:steps],
        "polar_express_margin": lookup(shape, "polar_express", steps).triples,
        "cans": (*cans, *classical)[:steps],
        "cans_margin": lookup(shape, "cans", steps).triples,
        "default": lookup(shape, "adaptive", steps).triples,
        "fitted": fit_coefficients(shape, steps).triples,
    }
    if steps == len(quintic):
        columns["you"] = quintic
    return columns


def fit_captured(shape: Shape, steps: int, early: Tensor) -> Coefficients:
    """Ours, fitted to captured momentum, with a Gaussian and a small log-uniform share."""
    histogram = SpectrumHistogram()
    histogram.add(early)
    spectrum = mixture(
        (0.72, histogram.spectrum()), (0.25, marchenko_pastur(*shape)), (0.03, log_uniform())
    )
    default = lookup(shape, "adaptive", steps).triples
    return fit_coefficients(shape, steps, spectrum, starts=[default])


def measure(
    source: str,
    shape: Shape,
    steps: int,
    sigma: Tensor,
    further: Mapping[str, tuple[Triple, ...]] | None = None,
) -> Row:
    """What every schedule does to held-out singular values.

    Args:
        source: Which matrices these are.
        shape: Their shape.
        steps: T.
        sigma: Their singular values, (matrices, m).
        further: More schedules by column name.
    """
    columns = {**schedules(shape, steps), **(further or {})}
    row = Row(source=source, shape=shape, steps=steps, triples=columns)
    for name, triples in columns.items():
        row.errors[name] = float32_error(triples, sigma)
        row.highest[name] = output_range(triples, upper=LARGEST_INPUT)[1]
    return row
