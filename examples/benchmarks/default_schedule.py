"""Make the table behind `coefficients="adaptive"`, and measure what its coarseness costs.

Each point of a grid of shapes gets schedules for 1 to 8 steps, fitted to the model of the
momentum's singular values in training (`lightning_root.coefficients.training_model`). A shape takes
the schedule of its nearest grid shape; `--check` fits a schedule of its own to each of many other
shapes and compares. float64, deterministic on one machine.

    python -m examples.benchmarks.default_schedule --check    # seconds a shape
    python -m examples.benchmarks.default_schedule --write    # about six minutes on one core
"""

import argparse

from lightning_root._files import write_json
from lightning_root.cli.output import progress
from lightning_root.coefficients import Coefficients, fit_coefficients, lookup, training_model
from lightning_root.coefficients.published import NEWTON_SCHULZ
from lightning_root.coefficients.store import RATIOS, ROWS, STEPS, TABLE, grid_shape

OTHER_SHAPES = [
    (48, 48),
    (96, 384),
    (192, 192),
    (320, 1280),
    (384, 1536),
    (512, 512),
    (768, 768),
    (768, 3072),
    (1280, 5120),
    (1536, 8960),
    (2048, 2048),
    (3072, 3072),
    (4096, 14336),
    (5120, 5120),
    (8192, 8192),
    (8192, 28672),
]


def fit_grid() -> dict[str, list[list[list[float]]]]:
    """Schedules for 1 to 8 steps by grid shape, each from its neighbours' as well."""
    schedules: dict[str, list[list[list[float]]]] = {}
    before: dict[int, list[Coefficients]] = {steps: [] for steps in range(1, STEPS + 1)}
    shapes = [grid_shape(rows, ratio) for ratio in RATIOS for rows in ROWS]
    for m, n in progress(shapes, "fitting"):
        rows = []
        for steps in range(1, STEPS + 1):
            starts = [entry.triples for entry in before[steps][-len(ROWS) :]]
            if steps > 1:
                starts.append((*before[steps - 1][-1].triples, NEWTON_SCHULZ))
            spectrum = training_model(m, n, steps)
            fitted = fit_coefficients((m, n), steps, spectrum, starts=starts)
            before[steps].append(fitted)
            rows.append([list(triple) for triple in fitted.triples])
        schedules[f"{m}x{n}"] = rows
    return schedules


def check(steps: int) -> None:
    """What a schedule of its own would gain for shapes that are not on the grid."""
    print(f"\n{steps} steps: error on the model of training\n")
    print(f"{'shape':>12} {'own fit':>10} {'table':>10}  from")
    for shape in OTHER_SHAPES:
        spectrum = training_model(*shape, steps)
        table = lookup(shape, "adaptive", steps)
        own = fit_coefficients(shape, steps, spectrum, starts=[table.triples])
        error = spectrum.mean_square_error(table.triples)
        name = f"{shape[0]}x{shape[1]}"
        print(f"{name:>12} {own.mse:10.5f} {error:10.5f}  {table.source.split(', ')[1]}")


def main() -> None:
    """Fit and write, or check, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite the table in the package")
    parser.add_argument("--check", action="store_true", help="compare with fits of their own")
    arguments = parser.parse_args()
    if arguments.write:
        source = "examples/benchmarks/default_schedule.py"
        write_json(TABLE, {"source": source, "schedules": fit_grid()}, indent=None)
    if arguments.check or not arguments.write:
        for steps in (3, 4, 5, 6):
            check(steps)


if __name__ == "__main__":
    main()
