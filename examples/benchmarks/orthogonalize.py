"""Time and error of the orthogonalization alone, form by form and shape by shape.

    python -m examples.benchmarks.orthogonalize
    python -m examples.benchmarks.orthogonalize --quick             # seconds, to try it
    python -m examples.benchmarks.orthogonalize --shapes 768x3072 200x64x256
    python -m examples.benchmarks.orthogonalize --device cuda --dtype bfloat16

All forms evaluate the same polynomial, `coefficients="adaptive"` at 5 steps, of the same matrices,
in turns. Their error is the distance to the same polynomial in float64.

Writes `orthogonalize.md` (the page) and `orthogonalize.json` (all numbers).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from examples.benchmarks.page import markdown_table, provenance
from examples.benchmarks.speed.clock import clock_of, interleave, quartiles, speed
from examples.benchmarks.speed.command import DTYPES, Command
from examples.benchmarks.speed.forms import BASELINE, FORMS, ON_GPUS, forms_for, published
from examples.benchmarks.speed.machine import Limits, measure_limits
from examples.benchmarks.speed.operations import FORMS as COUNTS
from examples.benchmarks.speed.sets import loud_columns
from examples.benchmarks.speed.words import (
    digits,
    how_timed,
    limits_table,
    milliseconds,
    percent,
    quick_warning,
    ratio,
)
from lightning_root.coefficients import lookup
from lightning_root.functional import Triple, clip_outliers

MODULE = "examples.benchmarks.orthogonalize"
STEPS = 5
WARM_UP = 2
RANK_SHARE = 4  # a matrix of low rank has a quarter of its rows' rank

StackShape: TypeAlias = tuple[int, ...]
SHAPES: list[StackShape] = [
    (384, 384),
    (768, 768),
    (768, 3072),
    (1024, 4096),
    (2048, 2048),
    (512, 4608),
    (32, 256, 1024),
    (200, 64, 256),
]
QUICK: list[StackShape] = [(32, 32), (4, 16, 48)]


def shape_option(text: str) -> StackShape:
    """Read "768x3072" or "200x64x256" from the command line."""
    sizes = tuple(int(size) for size in text.split("x") if size.isdigit())
    if len(sizes) not in (2, 3) or len(sizes) != text.count("x") + 1 or 0 in sizes:
        raise argparse.ArgumentTypeError(
            f"a shape is written 768x3072, a stack 200x64x256, got {text!r}"
        )
    return (*sizes[:-2], *sorted(sizes[-2:]))


def make_matrices(
    shape: StackShape, seed: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Inputs by kind: clipped, with loud and quiet columns, and of low rank."""
    generator = torch.Generator().manual_seed(seed)
    batch, m, n = torch.Size(shape[:-2]).numel(), *shape[-2:]
    rank = max(1, m // RANK_SHARE)
    loud = [loud_columns(m, n, generator) for _ in range(batch)]
    low = [
        torch.randn(m, rank, generator=generator) @ loud_columns(rank, n, generator)
        for _ in range(batch)
    ]
    kinds = {"full": clip_outliers(torch.stack(loud), 0.9), "low": torch.stack(low)}
    return {kind: stack.view(shape).to(device, dtype) for kind, stack in kinds.items()}


def error(result: Tensor, exact: Tensor) -> float:
    """||U - U64|| / ||U64||, Frobenius; the largest of a stack."""
    distance = torch.linalg.matrix_norm(result.double() - exact)
    return float((distance / torch.linalg.matrix_norm(exact)).max())


def measure_shape(shape: StackShape, limits: Limits, options: argparse.Namespace) -> dict[str, Any]:
    """Time and error of every form on matrices of one shape."""
    triples: tuple[Triple, ...] = lookup(shape[-2:], "adaptive", STEPS).triples
    matrices = make_matrices(shape, options.seed, DTYPES[options.dtype], options.device)
    forms = forms_for(options.device)
    errors: dict[str, dict[str, float]] = {name: {} for name in forms}
    for kind, matrix in matrices.items():
        exact = published(matrix.double(), triples)
        for name, form in forms.items():
            errors[name][kind] = error(form.run(matrix, triples), exact)
    runs = {name: partial(form.run, matrices["full"], triples) for name, form in forms.items()}
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    times = interleave(
        runs,
        options.rounds,
        device=options.device,
        seed=options.seed,
        label="x".join(map(str, shape)),
    )
    clock = clock_of(options.device, options.threads)
    batch, m, n = torch.Size(shape[:-2]).numel(), *shape[-2:]
    rows = {}
    for name, form in forms.items():
        operations = batch * form.operations(m, n, STEPS)
        seconds = quartiles(getattr(times[name], clock)).median
        rows[name] = {
            **asdict(times[name]),
            "seconds": seconds,
            "speed": speed(times[name], times[BASELINE], clock),
            "operations": operations,
            "peak_share": operations / seconds / limits.rate(options.dtype),
            "error": errors[name],
        }
    counts = {name: batch * count(m, n, STEPS) for name, count in COUNTS.items()}
    return {"shape": shape, "operations": counts, "forms": rows}


def page_text(numbers: Mapping[str, Any]) -> str:
    """The Markdown page of what the JSON file holds."""
    about, shapes = numbers["about"], numbers["shapes"]
    parts = [
        "# Time of the orthogonalization alone",
        f'The polynomial of `coefficients="adaptive"` with {STEPS} steps, of {numbers["dtype"]} '
        "matrices, by several forms that give the same result but for round-off.",
        provenance(about),
        quick_warning(about),
        "## Two numbers first",
        "How many operations each way of writing the iteration needs, in GFLOP, and how many the "
        "machine does in a second.",
        limits_table(numbers["limits"]),
        markdown_table(["matrix", *COUNTS], [_counts(values) for values in shapes]),
        "A multiply-add is two operations. Symmetric: products whose result is symmetric at half "
        "their cost. With a triple of its own for every step nothing changes in these counts.",
        "## How to read the tables",
        how_timed(about, numbers["clock"])
        + " **Speed** is that of the published form divided by this time. **Of peak**: operations "
        "of this very form in a second, as a share of the best rate of its dtype above. **Error**: "
        "||U - U64|| / ||U64|| in the Frobenius norm against the published form in float64, the "
        "largest of a stack; for clipped matrices with loud and quiet columns, of full rank, and "
        "for matrices of a quarter of full rank.",
        _forms(shapes),
        *(part for values in shapes for part in _shape(values)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts(values: Mapping[str, Any]) -> list[str]:
    counts = [digits(values["operations"][name] / 1e9) for name in COUNTS]
    least = min(values["operations"].values())
    bold = [
        f"**{text}**" if values["operations"][name] == least else text
        for name, text in zip(COUNTS, counts, strict=True)
    ]
    return ["x".join(map(str, values["shape"])), *bold]


def _forms(shapes: Sequence[Mapping[str, Any]]) -> str:
    present = {name for values in shapes for name in values["forms"]}
    forms = [(name, form) for name, form in (FORMS | ON_GPUS).items() if name in present]
    lines = [f"| `{name}` | {form.about} |" for name, form in forms]
    return "\n".join(["| form | what it does |", "|---|---|", *lines])


def _shape(values: Mapping[str, Any]) -> list[str]:
    head = ["form", "ms", "speed", "GFLOP", "of peak", "error, full rank", "error, low rank"]
    body = [
        [
            f"`{name}`",
            milliseconds(row["seconds"]),
            ratio(row["speed"]),
            digits(row["operations"] / 1e9),
            percent(row["peak_share"]),
            *(f"{row['error'][kind]:.1e}" for kind in ("full", "low")),
        ]
        for name, row in values["forms"].items()
    ]
    return ["## " + "x".join(map(str, values["shape"])), markdown_table(head, body)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write page and numbers."""
    command = Command(MODULE, __doc__, rounds=15)
    command.parser.add_argument(
        "--shapes", nargs="+", type=shape_option, metavar="MxN", help="matrices, or stacks KxMxN"
    )
    command.parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of matrices (default: float32)"
    )
    options = command.parse(arguments)
    limits = measure_limits(options.device, quick=options.quick)
    shapes = options.shapes or (QUICK if options.quick else SHAPES)
    numbers = {
        "dtype": options.dtype,
        "clock": clock_of(options.device, options.threads),
        "limits": asdict(limits),
        "shapes": [measure_shape(shape, limits, options) for shape in shapes],
    }
    print(f"Written to {command.write(options, numbers, page_text)}")


if __name__ == "__main__":
    main()
