"""The table of statistics: what the monitor measures and logs, TensorBoard and reports show."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from torch import Tensor

from lightning_root.optim import Stack as Stack

Reduction: TypeAlias = Literal["mean", "max", "min"]
"""A way to make one number of the values of all matrices."""

Section: TypeAlias = Literal["orthogonalization", "outliers", "updates"]
"""Of a report, in this order."""

# Tag of the number of updates left out, which is counted and not measured
SKIPPED: Final = "root/skipped"


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One number per matrix, and everything that is said of it anywhere.

    A new one needs an entry below and, unless `compute` says it in place, a function.
    """

    name: str  # in tags, `root/<name>/<reduction>` and `root/<name>/<parameter>`
    compute: Callable[[Stack], Tensor] | None = None  # (k) values; None: `measure` takes it itself
    # Whether a parameter group has the stage on that this is a statistic of; without it the value
    # is NaN and nothing is logged, drawn or counted. None: it is always there.
    stage: Callable[[Mapping[str, Any]], bool] | None = None
    infinite_is_undefined: bool = False  # leave infinities out too; else they and NaNs are shown
    reductions: tuple[Reduction, ...] = ()  # over all matrices, each counted once: what is logged
    per_parameter: bool = False  # log it of each parameter too
    note: str = ""  # in the help of `ROOTMonitor`
    # Title on TensorBoard's page of custom scalars; those with equal ones share a chart. Up to a
    # comma it is that of the chart of each parameter too.
    chart: str = ""
    heat_map: str = ""  # title by layer and step, with a chart of each; needs `per_parameter`
    heat_map_log: bool = False  # beside decades in time layers would not differ
    card: bool = False  # have the last mean among the key numbers of a report
    section: Section | None = None  # of the report that has its panel
    title: str = ""  # of the panel; those with equal ones share a panel, the last of them on top
    unit: str = ""  # label of the panel's vertical axis
    about: str = ""  # the definition, in the caption
    line: str = ""  # its name in a panel that it shares
    from_zero: bool = False  # have the vertical axis begin at zero
    compared: int = 99  # place among the panels of a comparison of runs
    largest: str = ""  # what the report calls layers with the largest values; "" if as good
    smallest: str = ""  # and those with the smallest

    def tag(self, of: str) -> str:
        """Return the tag of a reduction or a parameter."""
        return f"root/{self.name}/{of}"

    def is_on(self, group: Mapping[str, Any]) -> bool:
        """Return whether matrices of a parameter group have this statistic."""
        return self.stage is None or self.stage(group)

    def is_defined(self, values: Tensor) -> Tensor:
        """Return which values are to be shown; a NaN is, unless it says that a stage is off."""
        absent = values.isnan() & (self.stage is not None)
        return ~(absent | values.isinf() & self.infinite_is_undefined)


def neuron_spread(stack: Stack) -> Tensor:  # (k,)
    """Compute how far apart the sizes of the neurons' updates are, before they are normalized."""
    roots = stack.neurons["neuron_exp_avg_sq"].sqrt()
    return roots.amax(1) / roots.amin(1)


_SIGMA_MIN: Final = Statistic(
    name="sigma_min",
    reductions=("min",),
    chart="singular values of the updates, least and greatest",
    section="orthogonalization",
    title="Singular values",
    unit="sigma of the updates",
    about="The least and the greatest singular value of any update.",
    line="least",
    from_zero=True,
)

_TABLE: Final = (
    Statistic(
        name="orth_error",  # of the orthogonalized update U
        reductions=("mean", "max"),
        per_parameter=True,
        chart="orthogonalization error",
        heat_map="Orthogonalization error, mean of (sigma - 1)^2",
        card=True,
        section="orthogonalization",
        title="Orthogonalization error",
        unit="mean of (sigma - 1)^2",
        about="Orthogonalization error: the mean of (sigma - 1)^2 over the singular values sigma "
        "of an update U, 0 if U is orthogonal.",
        compared=1,
        largest="highest error",
    ),
    _SIGMA_MIN,
    replace(
        _SIGMA_MIN,
        name="sigma_max",
        reductions=("max",),
        note="singular values of the update",
        line="greatest",
    ),
    Statistic(name="orthogonal_rms"),  # of U, for alerts
    Statistic(
        name="update_rms",  # of the scaled update, the learning rate left out
        reductions=("mean", "min", "max"),
        per_parameter=True,
        chart="update RMS, without the learning rate",
        heat_map="Root mean square of the scaled update",
        section="updates",
        title="Update size",
        unit="RMS of the update",
        about="Root mean square of the scaled update's entries, the learning rate left out.",
        compared=8,
        smallest="smallest update",
    ),
    Statistic(
        name="update_to_weight",
        infinite_is_undefined=True,  # nothing moves in proportion to a weight of zeros
        reductions=("mean", "max"),
        per_parameter=True,
        note="learning rate * ||scaled update|| / ||weight before the step||, weights of zeros "
        "left out",
        chart="update to weight, with the learning rate",
        heat_map="log10 of learning rate * ||update|| / ||weight||",
        heat_map_log=True,
        section="updates",
        title="Update to weight",
        unit="lr ||update|| / ||W||",
        about="What a step moves, relative to the weight W before it: lr ||scaled update|| / "
        "||W||.",
        compared=9,
        smallest="slowest",
    ),
    Statistic(
        name="cosine",
        reductions=("mean",),
        note="of momentum and update",
        chart="cosine of momentum and update",
        section="updates",
        title="Cosine",
        unit="cos(N, U)",
        about="Cosine of momentum N and update U: sum(N * U) / (||N|| ||U||).",
        compared=7,
    ),
    Statistic(
        name="neuron_spread",
        compute=neuron_spread,
        stage=lambda group: group.get("normalize") == "neuron",
        infinite_is_undefined=True,  # a neuron without any gradient so far
        reductions=("mean", "max"),
        per_parameter=True,
        note="largest by smallest root of the neurons' mean squares, with `normalize`",
        chart="spread of the neurons' updates",
        section="updates",
        title="Spread of neurons",
        unit="largest / smallest",
        about="The largest root of a matrix's neuron-wise second moment v over the smallest: what "
        "the normalization evens out.",
        compared=10,
    ),
    Statistic(
        name="momentum_rms",
        reductions=("mean",),
        section="updates",
        title="Momentum size",
        unit="RMS of the momentum",
        about="Root mean square of the momentum's entries.",
        compared=6,
    ),
    Statistic(
        name="outlier_energy",
        reductions=("mean", "max"),
        per_parameter=True,
        chart="outlier energy",
        heat_map="Share of the momentum's energy beyond the threshold",
        section="outliers",
        title="Outlier energy",
        unit="share of energy",
        about="Outlier energy: the share ||N - B||^2 / ||N||^2 of the momentum N that the "
        "threshold takes away, B = clamp(N, -q, q).",
        compared=3,
        largest="most outliers",
    ),
    Statistic(
        name="outlier_fraction",
        reductions=("mean",),
        per_parameter=True,
        section="outliers",
        title="Outlier fraction",
        unit="share of entries",
        about="Outlier fraction: the share of entries that the threshold changes.",
        compared=2,
    ),
    Statistic(name="threshold"),  # max |B|
    Statistic(
        name="relative_threshold",
        reductions=("mean",),
        section="outliers",
        title="Relative threshold",
        unit="q / RMS(N)",
        about="The threshold q in units of the momentum's root mean square; the heavier the "
        "tails, the lower.",
        compared=4,
    ),
    Statistic(
        name="kurtosis",
        reductions=("mean", "max"),
        chart="momentum kurtosis (Gaussian: 3)",
        section="outliers",
        title="Kurtosis",
        unit="E[x^4] / E[x^2]^2",
        about="Kurtosis of the momentum's entries about zero, E[x^4] / E[x^2]^2.",
        compared=5,
    ),
)

STATISTICS: Final = {statistic.name: statistic for statistic in _TABLE}
"""By name; in this order they are the rows of `Measurements.values`, charts and panels."""


def row_of(name: str) -> int:
    """Return the row of a statistic in `Measurements.values`."""
    return list(STATISTICS).index(name)


def heat_map_statistics() -> list[Statistic]:
    """Return what is drawn by layer and step: by section, those of optional stages last."""
    order = ("orthogonalization", "outliers", "updates", None)
    drawn = [statistic for statistic in STATISTICS.values() if statistic.heat_map]
    return sorted(drawn, key=lambda s: (s.stage is not None, order.index(s.section)))


def logged_tags() -> str:
    """Return what is logged of all matrices, as a list in words."""
    found = []
    for statistic in STATISTICS.values():
        if statistic.reductions:
            kinds = ",".join(statistic.reductions)
            tag = statistic.tag(kinds if len(statistic.reductions) == 1 else f"{{{kinds}}}")
            found.append(f"`{tag}`" + (f" ({statistic.note})" if statistic.note else ""))
    return ", ".join(found)


def parameter_statistics() -> str:
    """Return the names of what is logged of each parameter, as a list in words."""
    names = [statistic.name for statistic in STATISTICS.values() if statistic.per_parameter]
    return f"{', '.join(names[:-1])} and {names[-1]}"
