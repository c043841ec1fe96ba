"""Warnings about what a person should know, once for each cause and parameter."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Final

from lightning.pytorch.utilities import rank_zero_warn

from lightning_root.diagnostics.measurements import STATISTICS
from lightning_root.diagnostics.observation import Facts, Observation

PATIENCE: Final = 3
"""Points in a row, or skipped steps in a row, before a warning: first steps are often odd."""

CERTIFICATE_MARGIN: Final = 0.1
"""How far above its certificate a singular value may come out; rounding of bfloat16 is 0.02."""

MOST_ENERGY: Final = 0.7
"""Outlier energy; 0.031 for Gaussian momentum, 0.1 to 0.5 early in training."""

LEAST_SHARE: Final = 0.5
"""Of the update RMS aimed at; less and three quarters of the directions are missing."""

MOST_SHARE: Final = 1.3
"""Of the update RMS aimed at; no bounded coefficients reach it."""

MOST_RANK: Final = 1.2
"""Stable rank of an update that counts as one direction."""

LEAST_ROWS: Final = 8
"""Smaller matrices are not judged by their rank."""

_ADVICE: Final = {
    "certificate": "singular values of the update lie above the range of the coefficients. Try "
    '`ns_dtype="float32"`, or another set of `coefficients`',
    "energy": f"more than {MOST_ENERGY:.0%} of the momentum's energy lies beyond the outlier "
    'threshold. Look at the data and at the precision; keep the threshold, or try "auto" as '
    "`outlier_quantile`",
    "small": f"the update RMS is below {LEAST_SHARE:.0%} of its target: the momentum has few "
    "directions. Look for inactive units; or give the parameter AdamW by `rules`",
    "large": f"the update RMS is above {MOST_SHARE:.0%} of its target: the orthogonalization is "
    "off. Try another set of `coefficients`, or more `ns_steps`",
    "dead": "the momentum is zero. Look for a layer that the loss does not depend on, or freeze it",
    "rank_one": "the update has rank one: every step is along a single direction. Look for a "
    "constant input or collapsed units; or give the parameter AdamW by `rules`",
    "skipped": f"skipped {PATIENCE} steps in a row because the gradient is not finite. Try a lower "
    "learning rate, gradient clipping, or `precision: bf16-mixed` in place of 16-mixed",
}


class Alerts:
    """Remembers what has been said, and for how long what has not been said has been so."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._in_a_row: Counter[tuple[str, str]] = Counter()
        self._skips_in_a_row: Counter[str] = Counter()

    def judge(self, observation: Observation) -> None:
        """Warn of what a point shows.

        Args:
            observation: Of a point that has measurements.
        """
        assert observation.measurements is not None
        columns = observation.measurements.values.T.tolist()
        labels = observation.measurements.labels
        seen = [
            (cause, label)
            for label, column, facts in zip(labels, columns, observation.facts, strict=True)
            for cause in causes(dict(zip(STATISTICS, column, strict=True)), facts)
        ]
        self._in_a_row = Counter({key: self._in_a_row[key] + 1 for key in seen})
        found: defaultdict[str, list[str]] = defaultdict(list)
        for (cause, label), count in self._in_a_row.items():
            if cause == "certificate" or count >= PATIENCE:
                found[cause].append(label)
        for cause, names in found.items():
            self._say(cause, names)

    def skipped(self, names: Iterable[str]) -> None:
        """Count a step, and warn of parameters that are skipped over and over.

        Args:
            names: Of the parameters that this step left alone.
        """
        self._skips_in_a_row = Counter({name: self._skips_in_a_row[name] + 1 for name in names})
        self._say("skipped", [n for n, c in self._skips_in_a_row.items() if c >= PATIENCE])

    def _say(self, cause: str, names: list[str]) -> None:
        new = [name for name in names if (cause, name) not in self._said]
        if not new:
            return
        self._said |= {(cause, name) for name in new}
        listed = ", ".join(f"`{name}`" for name in new[:3])
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        rank_zero_warn(f"ROOTMonitor, {listed}{more}: {_ADVICE[cause]}. Said once per parameter")


def causes(values: dict[str, float], facts: Facts) -> list[str]:
    """What is worth a warning about one matrix if it stays so.

    Args:
        values: Its statistics.
        facts: What they are judged by.
    """
    if values["momentum_rms"] == 0.0:
        return ["dead"]
    found = []
    rows, columns = facts.shape
    if values["sigma_max"] > facts.coefficients.certificate[1] + CERTIFICATE_MARGIN:
        found.append("certificate")
    if values["outlier_energy"] > MOST_ENERGY:
        found.append("energy")
    # The stable rank, ||U||_F^2 over its largest singular value squared.
    energy = values["orthogonal_rms"] ** 2 * rows * columns
    if rows >= LEAST_ROWS and energy < MOST_RANK * values["sigma_max"] ** 2:
        found.append("rank_one")
    elif facts.target_rms is not None and rows >= LEAST_ROWS:
        share = values["update_rms"] / facts.target_rms
        if share < LEAST_SHARE:
            found.append("small")
        elif share > MOST_SHARE:
            found.append("large")
    return found
