"""Named sets of options for `ROOT`, as plain dicts: other people's optimizers, and our best.

    ROOT(model.parameters(), lr=0.012, **recipes.BEST)

Each is an overlay too, `configs/optimizer/<name>.yaml`. None has a learning rate. Where two of them
were compared, and with which result, is said in the README and in `examples/results`.
"""

from typing import Any, Final

PAPER: Final[dict[str, Any]] = {
    "nesterov": False,
    "coefficients": "paper",
    "outlier_quantile": 0.9,
}
"""ROOT as arXiv:2511.20626 states it: Algorithm 2, and a triple for each shape of its Table 1."""

MUON: Final[dict[str, Any]] = {"coefficients": "muon", "outlier_quantile": None}
"""Muon (K. Jordan et al., 2024) with the split and the scale of ROOT."""

NORMUON: Final[dict[str, Any]] = {**MUON, "normalize": "neuron"}
"""NorMuon (arXiv:2510.05491): Muon, each neuron's update by its own running size."""

PMUON: Final[dict[str, Any]] = {
    **MUON,
    "precondition": "covariance",
    "precondition_sides": "both",
    "precondition_exponent": 0.3,
}
"""PMuon (modded-nanogpt): Muon behind covariances of both sides to the power -0.3."""

SOAP_MUON: Final[dict[str, Any]] = {
    **MUON,
    "precondition": "soap",
    "precondition_sides": "both",
    "precondition_every": 5,
}
"""Muon behind SOAP (arXiv:2409.11321; modded-nanogpt): a second moment in the eigenbases."""

BEST: Final[dict[str, Any]] = {
    "outlier_quantile": "auto",
    "precondition": "auto",
    "lr_scales": {"embedding": 3.0, "head": 0.3},
}
"""The lowest loss on text that we measured, at a small cost in time."""
