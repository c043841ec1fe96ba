"""`python -m lightning_root plan`: what each of N ranks would do and exchange in a step."""

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from lightning_root.cli import output
from lightning_root.cli.lightning import read_model
from lightning_root.coefficients.shapes import shape_text
from lightning_root.diagnostics.report.drawing import colour
from lightning_root.distributed import (
    COSTS,
    CostForm,
    OwnershipPlan,
    Placement,
    Shape,
    matrices_in,
    plan_ownership,
)
from lightning_root.partition import partition_parameters

PLACEMENTS: Final[tuple[Placement, Placement]] = ("replicated", "rows")
ELEMENT_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2}
MAX_BARS: Final = 64  # ranks that have a bar each in a picture; more are drawn as an area


@dataclass(frozen=True)
class Plans:
    """The ownership plans of one model, by number of ranks."""

    model: str  # name of its class
    shapes: Counter[Shape]  # number of matrices of each (m, n), m <= n
    steps: int
    form: CostForm  # whose operations are counted
    dtype: str  # of what travels
    replicated: Mapping[int, OwnershipPlan]  # for DDP
    rows: Mapping[int, OwnershipPlan]  # for FSDP2


def run(options: argparse.Namespace) -> int:
    """Print the plans as a table or as JSON, and draw them."""
    if options.plot:
        output.check_picture(options.plot)
    plans = _make_plans(options)
    if options.json:
        output.print_json(_as_dict(plans))
    else:
        print(_text(plans))
    if options.plot:
        draw_loads(options.plot, plans)
        if not options.json:
            print(f"\nload of each rank drawn to {options.plot}")
    return 0


def _make_plans(options: argparse.Namespace) -> Plans:
    model, chosen = read_model(options.model, allocate=options.allocate)
    routes = partition_parameters(model, rules=chosen.get("rules")).routes
    matrices = [entry for route in routes for entry in matrices_in(route.name, route.matrices)]
    if not matrices:
        raise ValueError(f"`{type(model).__name__}` has no matrix for ROOT; `partition` says why")
    steps: int = options.steps or chosen.get("ns_steps", 5)
    usual = "standard" if chosen.get("ns_form") == "standard" else "cheapest"
    form = cast("CostForm", options.form or usual)
    shapes: Counter[Shape] = Counter()
    for entry in matrices:
        m, n = sorted(entry.shape)
        shapes[m, n] += entry.count
    size = ELEMENT_BYTES[options.dtype]
    plan = partial(plan_ownership, matrices, steps=steps, element_bytes=size, cost=COSTS[form])
    replicated, rows = (
        {ranks: plan(ranks, placement=placement) for ranks in sorted(set(options.ranks))}
        for placement in PLACEMENTS
    )
    return Plans(type(model).__name__, shapes, steps, form, options.dtype, replicated, rows)


def _text(plans: Plans) -> str:
    """Return a row for each number of ranks, what it means, and where more ranks do not help."""
    limited = [ranks for ranks, plan in plans.replicated.items() if plan.limited_by_largest]
    largest = max(plans.shapes, key=lambda shape: COSTS[plans.form](shape, plans.steps))
    return output.render(
        "plan",
        plans=plans,
        plan=next(iter(plans.replicated.values())),
        elements=sum(m * n * number for (m, n), number in plans.shapes.items()),
        prefixed=with_prefix,
        rows=[_row(plans, ranks) for ranks in plans.replicated],
        limited=limited,
        shape=shape_text(largest),
    )


def with_prefix(value: float, unit: str = "") -> str:
    """Format three digits with an SI prefix and a unit."""
    prefixes, power = ("", "k", "M", "G", "T", "P", "E"), 0
    while float(f"{value:.3g}") >= 1000 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}".strip()


def _row(plans: Plans, ranks: int) -> list[str]:
    replicated, rows = plans.replicated[ranks], plans.rows[ranks]
    fewest, most = min(_counts(replicated)), max(_counts(replicated))
    return [
        f"{ranks:,}",
        f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}",
        with_prefix(replicated.busiest),
        f"{replicated.balance:.3f}",
        f"{replicated.lower_bound * ranks / sum(replicated.operations):.3f}",
        *(
            with_prefix(value, "B")
            for plan in (replicated, rows)
            for value in (max(plan.received), plan.bytes_bound)
        ),
    ]


def _counts(plan: OwnershipPlan) -> list[int]:
    """Count the matrices that each rank owns."""
    counts = [0] * plan.ranks
    for piece in plan.pieces:
        counts[piece.owner] += piece.matrices.count
    return counts


def _as_dict(plans: Plans) -> dict[str, Any]:
    shapes = {shape_text(shape): count for shape, count in plans.shapes.items()}
    values = {name: getattr(plans, name) for name in ("model", "steps", "form", "dtype")}
    every = [_ranks_as_dict(plans, ranks) for ranks in plans.replicated]
    return {"model": plans.model, "shapes": shapes, **values, "plans": every}


def _ranks_as_dict(plans: Plans, ranks: int) -> dict[str, Any]:
    plan = plans.replicated[ranks]
    traffic = {
        name: {"bytes_bound": of.bytes_bound, "sent": list(of.sent), "received": list(of.received)}
        for name, of in (("ddp", plan), ("fsdp2", plans.rows[ranks]))
    }
    same = ("busiest", "share", "balance", "lower_bound", "limited_by_largest")
    return {
        "ranks": ranks,
        "operations": sum(plan.operations),
        **{name: getattr(plan, name) for name in same},
        "per_rank": {"matrices": _counts(plan), "operations": list(plan.operations)},
        **traffic,
    }


def draw_loads(path: Path, plans: Plans) -> None:
    """Draw each rank's operations over the mean, busiest first: a panel for each number."""
    columns = min(len(plans.replicated), 3)
    rows = -(-len(plans.replicated) // columns)
    figure = output.new_figure(max(4.2 * columns, 6.0), 3.2 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (ranks, plan) in zip(panels, plans.replicated.items(), strict=False):
        mean = sum(plan.operations) / ranks
        loads = sorted((load / mean for load in plan.operations), reverse=True)
        if ranks <= MAX_BARS:
            axes.bar(range(ranks), loads, width=0.85, color=colour(0), alpha=0.75)
        else:
            axes.stairs(loads, range(ranks + 1), fill=True, color=colour(0), alpha=0.75)
        axes.axhline(1.0, color="black", linewidth=1.0, label="mean")
        best = plan.lower_bound / mean
        axes.axhline(best, color=colour(1), linewidth=1.0, linestyle="--", label="busiest at best")
        axes.set_title(f"{ranks:,} ranks: busiest at {plan.balance:.3f}", fontsize=9.5, loc="left")
        axes.set(xlabel="ranks, the busiest first", ylim=(0.0, 1.15 * max(loads)))
        axes.set_xticks([])
        output.plain_axes(axes)
    first, *others = figure.axes
    for axes in others[len(plans.replicated) - 1 :]:
        axes.set_visible(False)
    first.set_ylabel("operations of a rank over the mean")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"{plans.model}, {plans.steps} steps", fontsize=10)
    figure.savefig(path, dpi=150)
