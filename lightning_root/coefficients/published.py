"""Published coefficient sets, each with its source; the numbers are in `tables/published.json`.

A triple (a, b, c) stands for sigma -> a sigma + b sigma^3 + c sigma^5; a schedule holds one per
step.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from lightning_root.coefficients.shapes import Shape, parse_shape
from lightning_root.functional import Triple, as_schedule


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published schedule for all shapes."""

    triples: tuple[Triple, ...]  # one per step, as published
    source: str
    then: Triple  # the step that continues it beyond its length
    margin: float | None = None  # by which `lookup.with_margin` divides the first input


def _by_shape(rows: dict[str, Any]) -> dict[Shape, Triple]:
    return {parse_shape(key): as_schedule([row])[0] for key, row in rows.items()}


def _schedule(name: str, scale: float = 1.0, **options: Any) -> Published:
    """Read a schedule whose polynomials are evaluated at sigma / `scale`."""
    known = _NUMBERS["schedules"][name]
    rows = as_schedule(known["triples"])
    triples = tuple((a / scale, b / scale**3, c / scale**5) for a, b, c in rows)
    return Published(triples=triples, source=known["source"], **{"then": NEWTON_SCHULZ, **options})


_NUMBERS: Final = json.loads((Path(__file__).parent / "tables" / "published.json").read_text())

# K. Jordan et al., Muon, 2024. The ROOT authors' script uses it for shapes it does not know.
MUON: Final[Triple] = as_schedule(_NUMBERS["schedules"]["muon"]["triples"])[0]
# The classical fifth-order step: fixed point 1 with zero first and second derivative.
NEWTON_SCHULZ: Final[Triple] = (1.875, -1.25, 0.375)

# Schedules by name. One more is an entry here and in the file, and its name in `CoefficientName`.
PUBLISHED: Final[dict[str, Published]] = {
    "muon": _schedule("muon", then=MUON),
    "polar_express": _schedule("polar_express", scale=1.01, margin=1.02),  # room for round-off
    "cans": _schedule("cans", margin=1.02),
    "quintic": _schedule("quintic"),
}

CoefficientName: TypeAlias = Literal[
    "adaptive", "paper", "published", "muon", "polar_express", "cans", "quintic"
]
"""The sets that have names; `lookup` says what each is."""

COEFFICIENT_NAMES: Final = ("adaptive", "paper", "published", *PUBLISHED)
"""All of `CoefficientName`."""

# ROOT, arXiv:2511.20626, Table 1: for 5 steps, fitted to Gaussian matrices.
TABLE_1: Final = _by_shape(_NUMBERS["table_1"])

# The ROOT authors' script, `"published"`: fitted to real momentum and Gaussian matrices, 1 : 3.
# The first is unstable: its range over [0, 1] reaches 3.3 after 5 steps and 679 after 6.
AUTHORS_SCRIPT: Final = _by_shape(_NUMBERS["authors_script"])
