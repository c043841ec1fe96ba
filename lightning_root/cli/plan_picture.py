"""The picture of `plan --plot`."""

from pathlib import Path
from typing import Final

from lightning_root.cli.plan_table import Plans
from lightning_root.cli.plots import new_figure, plain_axes
from lightning_root.diagnostics.report.drawing import colour

BARS: Final = 64
"""Most ranks that have a bar each; more are an area."""


def draw_loads(path: Path, plans: Plans) -> None:
    """The operations of each rank over the mean, the busiest first: a panel for each number.

    Args:
        path: The image file.
        plans: Those of one model.
    """
    columns = min(len(plans.ranks), 3)
    rows = -(-len(plans.ranks) // columns)
    figure = new_figure(max(4.2 * columns, 6.0), 3.2 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, ranks in zip(panels, plans.ranks, strict=False):
        plan = plans.plans["replicated", ranks]
        mean = sum(plan.operations) / ranks
        loads = sorted((load / mean for load in plan.operations), reverse=True)
        if ranks <= BARS:
            axes.bar(range(ranks), loads, width=0.85, color=colour(0), alpha=0.75)
        else:
            axes.stairs(loads, range(ranks + 1), fill=True, color=colour(0), alpha=0.75)
        axes.axhline(1.0, color="black", linewidth=1.0, label="mean")
        best = plan.lower_bound / mean
        axes.axhline(best, color=colour(1), linewidth=1.0, linestyle="--", label="busiest at best")
        axes.set_title(f"{ranks:,} ranks: busiest at {plan.balance:.3f}", fontsize=9.5, loc="left")
        axes.set(xlabel="ranks, the busiest first", ylim=(0.0, 1.15 * max(loads)))
        axes.set_xticks([])
        plain_axes(axes)
    for axes in list(figure.axes)[len(plans.ranks) :]:
        axes.set_visible(False)
    first = figure.axes[0]
    first.set_ylabel("operations of a rank over the mean")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{plans.model}, {plans.steps} steps", fontsize=10)
    figure.savefig(path, dpi=150)
