"""Published coefficient sets, each with its source. Plain numbers, nothing computed.

A triple (a, b, c) stands for sigma -> a sigma + b sigma^3 + c sigma^5; a schedule holds one per
step.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from lightning_root.coefficients.shapes import Shape
from lightning_root.functional import Triple

# K. Jordan et al., Muon, 2024. The ROOT authors' script uses it for shapes it does not know.
MUON: Final[Triple] = (3.4445, -4.7750, 2.0315)
# The classical fifth-order step: fixed point 1 with zero first and second derivative.
NEWTON_SCHULZ: Final[Triple] = (1.875, -1.25, 0.375)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published schedule for all shapes."""

    triples: tuple[Triple, ...]  # one per step, as published
    source: str
    then: Triple = NEWTON_SCHULZ  # the step that continues it beyond its length
    margin: float | None = None  # by which `lookup.with_margin` divides the first input


# Polar Express evaluates all its polynomials but the last at sigma / 1.01: room for round-off.
_SAFETY: Final = 1.01

# Schedules by name. One more is an entry here, and its name in `CoefficientName`.
PUBLISHED: Final[dict[str, Published]] = {
    "muon": Published(triples=(MUON,), source="Muon (K. Jordan et al., 2024)", then=MUON),
    "polar_express": Published(  # N. Amsel et al.
        triples=tuple(
            (a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5)
            for a, b, c in (
                (8.28721201814563, -23.595886519098837, 17.300387312530933),
                (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
                (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
                (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
            )
        ),
        source="Polar Express (arXiv:2505.16932)",
        margin=1.02,
    ),
    "cans": Published(  # E. Grishina et al.
        triples=(
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
        source="CANS (arXiv:2506.10935)",
        margin=1.02,
    ),
    "quintic": Published(  # "Squeezing 1-2% efficiency gains out of Muon", 2025
        triples=(
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        source="J. You; F. Cesista",
    ),
}

CoefficientName: TypeAlias = Literal[
    "adaptive", "paper", "published", "muon", "polar_express", "cans", "quintic"
]
"""The sets that have names; `lookup` says what each is."""

COEFFICIENT_NAMES: Final = ("adaptive", "paper", "published", *PUBLISHED)
"""All of `CoefficientName`."""

# ROOT, arXiv:2511.20626, Table 1: for 5 steps, fitted to Gaussian matrices.
TABLE_1: Final[dict[Shape, Triple]] = {
    (2048, 2048): (3.3334, -4.2591, 1.7791),
    (4096, 4096): (3.3732, -4.6134, 2.0576),
    (8192, 8192): (3.3886, -4.9026, 2.3105),
    (2048, 3072): (2.9091, -3.8108, 1.8600),
    (2048, 4096): (2.7739, -3.4911, 1.6992),
    (2048, 8192): (2.5925, -3.0010, 1.4138),
    (2048, 16384): (2.7045, -3.2335, 1.5336),
}

# The ROOT authors' script, `"published"`: fitted to real momentum and Gaussian matrices, 1 : 3.
# The first is unstable: its range over [0, 1] reaches 3.3 after 5 steps and 679 after 6.
AUTHORS_SCRIPT: Final[dict[Shape, Triple]] = {
    (2048, 2048): (3.4916, -4.8224, 2.1095),
    (2048, 3072): (3.4509, -4.5790, 1.9325),
    (2048, 8192): (2.9794, -3.6674, 1.6207),
    (2048, 16384): (3.1943, -3.8221, 1.5322),
}
