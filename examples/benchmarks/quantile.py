"""Time of finding the 0.9-quantile of a matrix's magnitudes, and what it then clips.

    python -m examples.benchmarks.quantile
    python -m examples.benchmarks.quantile --quick      # seconds, to try it
    python -m examples.benchmarks.quantile --device cuda

ROOT clips its momentum there. Every way is timed on Gaussian matrices, in turns; then the share of
entries that its threshold really clips is counted, on Gaussian matrices, on heavy tails, and on
matrices with loud columns, where a sample of the entries can go wrong.

Writes `quantile.md` (the page) and `quantile.json` (all numbers).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from examples.benchmarks.page import markdown_table, provenance
from examples.benchmarks.speed.clock import clock_of, interleave, quartiles, speed
from examples.benchmarks.speed.command import Command
from examples.benchmarks.speed.machine import measure_limits
from examples.benchmarks.speed.operations import standard
from examples.benchmarks.speed.selections import (
    BASELINE,
    ON_GPUS,
    SELECTIONS,
    selections_for,
)
from examples.benchmarks.speed.words import digits, how_timed, quick_warning, ratio

MODULE = "examples.benchmarks.quantile"
QUANTILE = 0.9
SHAPES = [(1024, 1024), (1024, 4096), (4096, 4096)]
QUICK = [(16, 64), (32, 128)]
LOUD = 16  # every 16th column is ten times as loud

Kind: TypeAlias = Callable[[int, int, torch.Generator], Tensor]


def gaussian(m: int, n: int, generator: torch.Generator) -> Tensor:
    """Independent standard normal entries."""
    return torch.randn(m, n, generator=generator)


def heavy_tailed(m: int, n: int, generator: torch.Generator) -> Tensor:
    """Student's t with 2 degrees of freedom: its variance is infinite.

    z / sqrt(E) with E exponential, which is half of a chi-squared with 2 degrees.
    """
    exponential = torch.rand(m, n, generator=generator).clamp_(min=1e-30).log_().neg_()
    return torch.randn(m, n, generator=generator).div_(exponential.sqrt_().clamp_(min=1e-12))


def loud(m: int, n: int, generator: torch.Generator) -> Tensor:
    """Gaussian, with every 16th column ten times as large."""
    matrix = torch.randn(m, n, generator=generator)
    matrix[:, ::LOUD] *= 10.0
    return matrix


KINDS: dict[str, Kind] = {"Gaussian": gaussian, "heavy tails": heavy_tailed, "loud columns": loud}


def clipped_share(matrix: Tensor, threshold: Tensor) -> float:
    """Share of the entries beyond a threshold."""
    return float((matrix.abs() > threshold).double().mean())


def measure_shape(shape: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Times of all ways on one matrix, and what they clip of every kind."""
    generator = torch.Generator().manual_seed(options.seed)
    matrices = {kind: make(*shape, generator) for kind, make in KINDS.items()}
    matrices = {kind: matrix.to(options.device) for kind, matrix in matrices.items()}
    selections = selections_for(options.device)
    runs = {
        name: partial(selection.run, matrices["Gaussian"], QUANTILE)
        for name, selection in selections.items()
    }
    clipped = {  # and a warm-up
        name: {k: clipped_share(m, selection.run(m, QUANTILE)) for k, m in matrices.items()}
        for name, selection in selections.items()
    }
    size = "x".join(map(str, shape))
    times = interleave(runs, options.rounds, device=options.device, seed=options.seed, label=size)
    clock = clock_of(options.device, options.threads)
    elements = shape[0] * shape[1]
    rows = {
        name: {
            **asdict(times[name]),
            "nanoseconds": 1e9 * quartiles(getattr(times[name], clock)).median / elements,
            "speed": speed(times[name], times[BASELINE], clock),
            "clipped": clipped[name],
        }
        for name in selections
    }
    return {"shape": shape, "elements": elements, "selections": rows}


def page_text(numbers: Mapping[str, Any]) -> str:
    """The Markdown page of what the JSON file holds."""
    about, shapes, limits = numbers["about"], numbers["shapes"], numbers["limits"]
    read = 4 / limits["bandwidth"] * 1e9
    rate = max(limits["products"]["float32"].values())
    steps = markdown_table(
        ["matrix", "ns an element for Newton-Schulz, 5 steps"],
        [[_size(v), digits(_iteration(v["shape"], rate))] for v in shapes],
    )
    head = ["way", *(f"{_size(values)}, {values['elements'] / 1e6:.3g} M" for values in shapes)]
    parts = [
        "# Time of the quantile",
        f"The {QUANTILE} quantile of the magnitudes of a float32 matrix.",
        provenance(about),
        quick_warning(about),
        "## Two numbers first",
        f"Every element has to be read once, 4 bytes, and the machine copies "
        f"{limits['bandwidth'] / 1e9:.1f} GB/s (read and write together), so that a way takes "
        f"{digits(read)} ns an element at the least where the matrix is in no cache. What it is "
        f"beside: at {rate / 1e9:.0f} GFLOP/s, the best rate of float32 products, the "
        "orthogonalization in its published form takes",
        steps,
        "## How to read the tables",
        how_timed(about, numbers["clock"])
        + " **Speed** is that of the published way divided by this time. **Clipped** is the share "
        f"of entries beyond the threshold; {1 - QUANTILE:.1f} is asked for.",
        _selections(shapes),
        "## Nanoseconds an element",
        markdown_table(head, _body(shapes, lambda row: digits(row["nanoseconds"]))),
        "## Speed",
        markdown_table(head, _body(shapes, lambda row: ratio(row["speed"]))),
        "## Clipped",
        *(part for values in shapes for part in _clipped(values)),
        f"Heavy tails: Student's t with 2 degrees of freedom. Loud columns: every {LOUD}th ten "
        "times as large.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _size(values: Mapping[str, Any]) -> str:
    return "x".join(map(str, values["shape"]))


def _iteration(shape: Sequence[int], rate: float) -> float:
    """Nanoseconds an element of five steps of the published form."""
    m, n = sorted(shape)
    return 1e9 * standard(m, n, 5) / rate / (m * n)


def _present(shapes: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in SELECTIONS | ON_GPUS if name in shapes[0]["selections"]]


def _selections(shapes: Sequence[Mapping[str, Any]]) -> str:
    known = SELECTIONS | ON_GPUS
    lines = [f"| `{name}` | {known[name].about} |" for name in _present(shapes)]
    return "\n".join(["| way | what it does |", "|---|---|", *lines])


def _body(
    shapes: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any]], str]
) -> list[list[str]]:
    names = _present(shapes)
    return [[f"`{name}`", *(cell(v["selections"][name]) for v in shapes)] for name in names]


def _clipped(values: Mapping[str, Any]) -> list[str]:
    body = [
        [f"`{name}`", *(f"{row['clipped'][kind]:.5f}" for kind in KINDS)]
        for name, row in values["selections"].items()
    ]
    return [f"{_size(values)}:", markdown_table(["way", *KINDS], body)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write page and numbers."""
    command = Command(MODULE, __doc__, rounds=11)
    options = command.parse(arguments)
    limits = measure_limits(options.device, quick=options.quick)
    shapes = QUICK if options.quick else SHAPES
    numbers = {
        "clock": clock_of(options.device, options.threads),
        "limits": asdict(limits),
        "shapes": [measure_shape(shape, options) for shape in shapes],
    }
    print(f"Written to {command.write(options, numbers, page_text)}")


if __name__ == "__main__":
    main()
