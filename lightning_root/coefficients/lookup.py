"""From a shape to the triples that orthogonalize it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Final, Literal, TypeAlias, get_args

from lightning_root.coefficients.certificate import output_range
from lightning_root.coefficients.fit import fit_triple
from lightning_root.coefficients.schedules import (
    CANS,
    MUON,
    NEWTON_SCHULZ,
    POLAR_EXPRESS,
    PUBLISHED,
    TABLE_1,
    Shape,
)
from lightning_root.functional import Triple, as_schedule

CoefficientName: TypeAlias = Literal[
    "adaptive", "paper", "published", "muon", "polar_express", "cans"
]
COEFFICIENT_NAMES: Final[tuple[str, ...]] = get_args(CoefficientName)

BOUND: Final = 2.0
"""Sets that send a singular value in [0, 1] above this are refused; sound ones stay below 1.3."""


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """A coefficient set with where it comes from and what it can do.

    Args:
        triples: One (a, b, c) per step.
        source: Where the numbers come from, in words.
        certificate: Exact range (low, high) of p_T over [0, 1].
    """

    triples: tuple[Triple, ...]
    source: str
    certificate: tuple[float, float]

    def __str__(self) -> str:
        """One line: steps, source and range."""
        low, high = self.certificate
        return f"{len(self.triples)} steps, {self.source}; p_T in [{low:.3g}, {high:.3g}] on [0, 1]"


def lookup(
    shape: Sequence[int],
    coefficients: CoefficientName | Sequence[float] | Sequence[Sequence[float]] = "adaptive",
    steps: int = 5,
) -> Coefficients:
    """The coefficients for matrices of one shape.

    Args:
        shape: (m, n) in either order.
        coefficients: A name, one triple (a, b, c), or one triple per step.

            * `"adaptive"`: a schedule with its own triple per step, fitted to Gaussian matrices of
              several shapes and to singular values spread log-uniformly over [3e-3, 1].
            * `"paper"`: one triple per shape, the paper's Table 1 or, for other shapes and numbers
              of steps, the same fit.
            * `"published"`: the authors' script: four shapes, Muon's triple elsewhere.
            * `"muon"`, `"polar_express"`, `"cans"`: the published schedules of those names. Beyond
              their length the classical Newton-Schulz step is appended.
        steps: T, at least 1. With one triple per step it must be their number.

    Returns:
        The triples, their source and their certificate.

    Raises:
        ValueError: If the name is unknown, `steps` does not fit, or the set is unbounded: its range
            over [0, 1] exceeds 2. The published 2048 x 2048 triple, which reaches 3.3 in 5 steps,
            is let through up to 5 steps.

    Example:
        >>> from lightning_root import lookup
        >>> print(lookup((768, 3072), "muon"))
        5 steps, Muon (K. Jordan et al., 2024); p_T in [0, 1.2] on [0, 1]
    """
    if isinstance(coefficients, str):
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"`steps` must be a whole number >= 1, got {steps!r}; 5 is usual")
        m, n = sorted(int(size) for size in shape)
        return _lookup_name((m, n), coefficients, steps)
    return _certified(as_schedule(coefficients, steps), "given by the user")


@lru_cache(maxsize=4096)
def _lookup_name(shape: Shape, name: str, steps: int) -> Coefficients:
    if name == "adaptive":
        table = _adaptive_table()
        return _certified(_extend(table[min(steps, max(table))], steps), "per-step fit")
    if name == "paper":
        if steps == 5 and shape in TABLE_1:
            return _certified((TABLE_1[shape],) * steps, "arXiv:2511.20626, Table 1")
        return _certified((fit_triple(shape, steps),) * steps, "fitted to Gaussian matrices")
    if name == "published":
        return _published(shape, steps)
    if name == "muon":
        return _certified((MUON,) * steps, "Muon (K. Jordan et al., 2024)")
    if name == "polar_express":
        return _certified(_extend(POLAR_EXPRESS, steps), "Polar Express (arXiv:2505.16932)")
    if name == "cans":
        return _certified(_extend(CANS, steps), "CANS (arXiv:2506.10935)")
    raise ValueError(
        f"`coefficients` must be one of {list(COEFFICIENT_NAMES)}, a triple (a, b, c) or one "
        f"triple per step, got {name!r}"
    )


def _published(shape: Shape, steps: int) -> Coefficients:
    triples = (PUBLISHED.get(shape, MUON),) * steps
    if shape == (2048, 2048) and steps <= 5:
        return _coefficients(triples, "the authors' script, unstable beyond 5 steps")
    source = "the authors' script" if shape in PUBLISHED else "the authors' script: Muon's triple"
    return _certified(triples, source)


def _extend(schedule: Sequence[Triple], steps: int) -> tuple[Triple, ...]:
    """The first `steps` triples, continued with classical Newton-Schulz steps."""
    missing = max(0, steps - len(schedule))
    return (*schedule[:steps], *(NEWTON_SCHULZ,) * missing)


def _coefficients(triples: tuple[Triple, ...], source: str) -> Coefficients:
    return Coefficients(triples=triples, source=source, certificate=output_range(triples))


def _certified(triples: tuple[Triple, ...], source: str) -> Coefficients:
    result = _coefficients(triples, source)
    low, high = result.certificate
    if max(-low, high) > BOUND:
        raise ValueError(
            f"`coefficients` ({source}, {len(triples)} steps) are unbounded: they map singular "
            f"values in [0, 1] to [{low:.3g}, {high:.3g}], outside [-{BOUND:g}, {BOUND:g}]. Take "
            'fewer steps (`ns_steps`) or another set, for example "adaptive"'
        )
    return result


@lru_cache(maxsize=1)
def _adaptive_table() -> dict[int, tuple[Triple, ...]]:
    """The shipped schedules, by number of steps."""
    text = resources.files(__package__).joinpath("tables/adaptive.json").read_text("utf-8")
    schedules: dict[str, list[list[float]]] = json.loads(text)["schedules"]
    return {int(steps): as_schedule(triples) for steps, triples in schedules.items()}
