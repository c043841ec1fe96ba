"""What `plan` prints: a row for each number of ranks."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from lightning_root.cli.terminal import print_json, text_table, wrapped
from lightning_root.coefficients.shapes import shape_text
from lightning_root.distributed import COSTS, CostForm, Matrices, OwnershipPlan, Placement, Shape

ELEMENT_BYTES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2}
"""Of what can travel between ranks."""

HEADER: Final = (
    *("ranks", "matrices", "operations", "balance", "at best"),
    *("DDP bytes", "at least", "FSDP2 bytes", "at least"),
)

LEGEND: Final = """\
matrices: that a rank owns; operations: of the busiest rank; balance: those over the mean; at best:
the least balance that any plan of whole matrices could have. Bytes: {dtype} that a rank
receives in a step, the one that receives most; at least: what no exchange between owners can do
without, on average (DDP: all updates but one's own; FSDP2: rows to owners, updates back)."""

_PREFIXES: Final = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True)
class Plans:
    """The plans of one model.

    Args:
        model: Its class.
        matrices: What is planned.
        steps: T.
        form: Whose operations are counted.
        dtype: Of what travels.
        plans: By placement and number of ranks.
    """

    model: str
    matrices: tuple[Matrices, ...]
    steps: int
    form: CostForm
    dtype: str
    plans: Mapping[tuple[Placement, int], OwnershipPlan]

    @property
    def ranks(self) -> list[int]:
        """The numbers of ranks, each once."""
        return list(dict.fromkeys(ranks for _, ranks in self.plans))

    @property
    def shapes(self) -> Counter[Shape]:
        """How many matrices of each shape, smaller size first."""
        counted: Counter[Shape] = Counter()
        for entry in self.matrices:
            m, n = sorted(entry.shape)
            counted[m, n] += entry.count
        return counted


def print_plans(plans: Plans) -> None:
    """Print the table, what it means, and where more ranks do not help."""
    replicated = [plans.plans["replicated", ranks] for ranks in plans.ranks]
    total = sum(replicated[0].operations)
    count, shapes = replicated[0].matrices, len(plans.shapes)
    elements = sum(m * n * number for (m, n), number in plans.shapes.items())
    print(
        f"{plans.model}: {count:,} {'matrix' if count == 1 else 'matrices'} of {shapes} "
        f"shape{'s' if shapes > 1 else ''}, {prefixed(elements)} parameters, "
        f"{prefixed(total)} operations in {plans.steps} steps ({plans.form} form)\n"
    )
    print(text_table(HEADER, [_row(plans, ranks) for ranks in plans.ranks]))
    print(f"\n{LEGEND.format(dtype=plans.dtype)}")
    for note in notes(plans):
        print(f"\n{note}")


def print_plans_as_json(plans: Plans) -> None:
    """Print all numbers, rank by rank."""
    print_json(
        {
            "model": plans.model,
            "shapes": {shape_text(shape): count for shape, count in plans.shapes.items()},
            "steps": plans.steps,
            "form": plans.form,
            "dtype": plans.dtype,
            "plans": [_as_dict(plans, ranks) for ranks in plans.ranks],
        }
    )


def notes(plans: Plans) -> list[str]:
    """Where one matrix alone keeps the busiest rank, and the others wait."""
    limited = [n for n in plans.ranks if plans.plans["replicated", n].limited_by_largest]
    if not limited:
        return []
    plan = plans.plans["replicated", limited[0]]
    shape = max(plans.shapes, key=lambda shape: COSTS[plans.form](shape, plans.steps))
    text = (
        f"With {limited[0]:,} ranks{' and more' if len(limited) > 1 else ''} the busiest has one "
        f"{shape_text(shape)} matrix and nothing else. Matrices are not cut, so no number of ranks "
        f"is more than {sum(plan.operations) / plan.largest:.1f} times as fast as one."
    )
    fewer = [f"{ranks:,}" for ranks in limited if ranks > plan.matrices]
    if fewer:
        text += f" There are fewer matrices than ranks with {' and '.join(fewer)}."
    return [wrapped(text)]


def prefixed(value: float, unit: str = "") -> str:
    """Three digits, the prefix of a unit, and the unit.

    Example:
        >>> from lightning_root.cli.plan_table import prefixed
        >>> prefixed(1_234_567), prefixed(999.6e9, "B"), prefixed(12, "B")
        ('1.23 M', '1 TB', '12 B')
    """
    power = 0
    while float(f"{value:.3g}") >= 1000 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_PREFIXES[power]}{unit}".strip()


def _row(plans: Plans, ranks: int) -> list[str]:
    replicated, rows = plans.plans["replicated", ranks], plans.plans["rows", ranks]
    fewest, most = min(_counts(replicated)), max(_counts(replicated))
    return [
        f"{ranks:,}",
        f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}",
        prefixed(replicated.busiest),
        f"{replicated.balance:.3f}",
        f"{replicated.lower_bound * ranks / sum(replicated.operations):.3f}",
        *(
            prefixed(value, "B")
            for plan in (replicated, rows)
            for value in (max(plan.received), plan.bytes_bound)
        ),
    ]


def _counts(plan: OwnershipPlan) -> list[int]:
    """How many matrices each rank owns."""
    counts = [0] * plan.ranks
    for piece in plan.pieces:
        counts[piece.owner] += piece.matrices.count
    return counts


def _as_dict(plans: Plans, ranks: int) -> dict[str, Any]:
    replicated, rows = plans.plans["replicated", ranks], plans.plans["rows", ranks]
    return {
        "ranks": ranks,
        "operations": sum(replicated.operations),
        "busiest": replicated.busiest,
        "share": replicated.share,
        "balance": replicated.balance,
        "lower_bound": replicated.lower_bound,
        "limited_by_largest": replicated.limited_by_largest,
        "per_rank": {"matrices": _counts(replicated), "operations": list(replicated.operations)},
        "ddp": _traffic(replicated),
        "fsdp2": _traffic(rows),
    }


def _traffic(plan: OwnershipPlan) -> dict[str, Any]:
    return {
        "bytes_bound": plan.bytes_bound,
        "sent": list(plan.sent),
        "received": list(plan.received),
    }
