"""The table of statistics: what the monitor measures and logs, TensorBoard and reports show."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_root.functional import cosine_similarity
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

    A new one needs an entry in `statistics.toml` and a function: here, or in `measure`.
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


def precondition_cosine(stack: Stack) -> Tensor:  # (k,)
    """Compute the cosine of the clipped momentum before and after it was preconditioned."""
    return cosine_similarity(stack.clipped, stack.orthogonalized)


def precondition_condition(stack: Stack) -> Tensor:  # (k,)
    """Return the condition numbers of the damped covariances, the larger one of two sides."""
    absent = stack.momentum.new_full((len(stack.names),), torch.nan)
    return absent if stack.conditions is None else stack.conditions


def precondition_age(stack: Stack) -> Tensor:  # (k,)
    """Return how many steps ago the roots were renewed."""
    return stack.momentum.new_tensor(stack.ages)


def _preconditioned(group: Mapping[str, Any]) -> bool:
    return bool(group.get("precondition", "none") != "none")


def _with_neurons(group: Mapping[str, Any]) -> bool:
    return bool(group.get("normalize") == "neuron")


# Entries of the table that are functions
_FUNCTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "neuron_spread": {"compute": neuron_spread, "stage": _with_neurons},
    **{
        function.__name__: {"compute": function, "stage": _preconditioned}
        for function in (precondition_cosine, precondition_condition, precondition_age)
    },
}


def _read_table() -> dict[str, Statistic]:
    table = tomllib.loads(Path(__file__).with_name("statistics.toml").read_text("utf-8"))
    for name, entries in table.items():
        entries["reductions"] = tuple(entries.get("reductions", ()))
        table[name] = Statistic(name=name, **entries, **_FUNCTIONS.get(name, {}))
    return table


STATISTICS: Final = _read_table()
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
