"""Warnings about unhealthy updates, once for each cause and parameter."""

import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from lightning.pytorch.utilities import rank_zero_warn

from lightning_root.diagnostics.observation import MatrixInfo, Observation
from lightning_root.diagnostics.statistics import STATISTICS

# Points in a row, or skipped steps in a row, before a warning: first steps are often odd
PATIENCE: Final = 3
# Allowed excess of a singular value over its certificate; rounding of bfloat16 is 0.02
CERTIFICATE_MARGIN: Final = 0.1
# Of the outliers; 0.031 for Gaussian momentum, 0.1 to 0.5 early in training
MAX_ENERGY: Final = 0.7
# Of update RMS and target; less and three quarters of the directions are missing
MIN_RMS_RATIO: Final = 0.5
MAX_RMS_RATIO: Final = 1.3  # of update RMS and target; no bounded coefficients reach it
MAX_RANK: Final = 1.2  # stable rank of an update that counts as one direction
MIN_ROWS: Final = 8  # smaller matrices are not judged by their rank
_TEXTS: Final = Path(__file__).with_name("alerts.toml")
_ADVICE: Final = {
    cause: text.format(
        patience=PATIENCE, energy=MAX_ENERGY, small=MIN_RMS_RATIO, large=MAX_RMS_RATIO
    )
    for cause, text in tomllib.loads(_TEXTS.read_text("utf-8")).items()
}


class Alerts:
    """Warns of each cause and parameter once, when it has lasted for `PATIENCE` points."""

    def __init__(self) -> None:
        self._warned: set[tuple[str, str]] = set()
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._skips_in_a_row: Counter[str] = Counter()

    def check(self, observation: Observation) -> None:
        """Warn of what the measurements of a point show."""
        assert observation.measurements is not None
        columns = observation.measurements.values.T.tolist()
        labels = observation.measurements.labels
        seen = [
            (cause, label)
            for label, column, info in zip(labels, columns, observation.infos, strict=True)
            for cause in causes(dict(zip(STATISTICS, column, strict=True)), info)
        ]
        self._in_a_row = Counter({key: self._in_a_row[key] + 1 for key in seen})
        found: defaultdict[str, list[str]] = defaultdict(list)
        for (cause, label), count in self._in_a_row.items():
            if cause == "certificate" or count >= PATIENCE:
                found[cause].append(label)
        for cause, names in found.items():
            self._warn(cause, names)

    def count_skips(self, names: Iterable[str]) -> None:
        """Count a step, and warn of parameters that it and those before it have skipped."""
        self._skips_in_a_row = Counter({name: self._skips_in_a_row[name] + 1 for name in names})
        self._warn("skipped", [n for n, c in self._skips_in_a_row.items() if c >= PATIENCE])

    def _warn(self, cause: str, names: list[str]) -> None:
        new = [name for name in names if (cause, name) not in self._warned]
        if not new:
            return
        self._warned |= {(cause, name) for name in new}
        listed = ", ".join(f"`{name}`" for name in new[:3])
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        rank_zero_warn(f"ROOTMonitor, {listed}{more}: {_ADVICE[cause]}. Said once per parameter")


def causes(values: dict[str, float], info: MatrixInfo) -> list[str]:
    """Return the causes for a warning in the statistics of one matrix."""
    if values["momentum_rms"] == 0.0:
        return ["dead"]
    found = []
    rows, columns = info.shape
    if values["sigma_max"] > info.coefficients.certificate[1] + CERTIFICATE_MARGIN:
        found.append("certificate")
    if values["outlier_energy"] > MAX_ENERGY:
        found.append("energy")
    # The stable rank, ||U||_F^2 over its largest singular value squared.
    energy = values["orthogonal_rms"] ** 2 * rows * columns
    if rows >= MIN_ROWS and energy < MAX_RANK * values["sigma_max"] ** 2:
        found.append("rank_one")
    elif info.target_rms is not None and rows >= MIN_ROWS:
        share = values["update_rms"] / info.target_rms
        if share < MIN_RMS_RATIO:
            found.append("small")
        elif share > MAX_RMS_RATIO:
            found.append("large")
    return found
