"""How far from orthogonal each coefficient set leaves a matrix: Table 1 recomputed, and more.

    python -m examples.benchmarks.orthogonalization_error
    python -m examples.benchmarks.orthogonalization_error --quick    # no dimension above 2048

The error is that of the paper's Table 1 (ROOT, arXiv:2511.20626): the mean of (sigma_out - 1)^2
over the singular values of a matrix after T steps, in float32. It is measured on matrices that no
coefficient set has seen: Gaussian ones, drawn here, and the clipped momentum of models in training,
late in runs that `examples.benchmarks.capture_momentum` made; fits use the early part.

Writes `orthogonalization_error.md` (the page), `.json` (all numbers) and three pictures. The
singular values of drawn matrices are kept beside the captured ones: they take most of the time.
Needs matplotlib: `pip install "lightning-root[plot]"`.
"""

import argparse
import hashlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from examples.benchmarks.capture_momentum import SPECTRA
from examples.benchmarks.orthogonalization.claims import check_claims
from examples.benchmarks.orthogonalization.iterations import cross_check
from examples.benchmarks.orthogonalization.measures import (
    Row,
    Run,
    as_shape,
    fit_captured,
    gaussian_spectra,
    load_run,
    measure,
)
from examples.benchmarks.orthogonalization.page import write_page
from examples.benchmarks.orthogonalization.pictures import draw_pictures
from examples.benchmarks.orthogonalization.table_1 import table_1
from examples.benchmarks.page import RESULTS, environment
from lightning_root._files import write_json
from lightning_root.coefficients import fit_coefficients
from lightning_root.coefficients.published import TABLE_1
from lightning_root.coefficients.shapes import Shape
from lightning_root.coefficients.store import TABLE

MODULE = "examples.benchmarks.orthogonalization_error"
STEPS = (3, 4, 5, 6)
QUICK = 2048  # largest dimension that `--quick` draws, and most rows that are iterated on


def measure_all(
    gaussian: dict[Shape, torch.Tensor], runs: Sequence[Run], steps: Sequence[int]
) -> list[Row]:
    """Every kind of matrix at every number of steps.

    Args:
        gaussian: Singular values (1, m) of drawn matrices by shape.
        runs: Captured momentum.
        steps: Numbers of steps T.
    """
    kinds: list[tuple[Run | None, Shape]] = [(None, shape) for shape in gaussian]
    kinds += [(run, shape) for run in runs for shape in run.late]
    rows = []
    with tqdm(total=len(kinds) * len(steps), desc="schedules", unit="fit") as progress:
        for run, shape in kinds:
            for number in steps:
                if run is None:
                    single = fit_coefficients(shape, number, per_step=False).triples
                    sigma, further, source = gaussian[shape], {"single": single}, "gaussian"
                else:
                    fit = fit_captured(shape, number, run.early[shape])
                    sigma, further, source = run.late[shape], {"captured": fit.triples}, run.name
                rows.append(measure(source, shape, number, sigma, further))
                progress.update()
    return rows


def iterate(
    rows: Sequence[Row], gaussian: dict[Shape, torch.Tensor], runs: Sequence[Run], seed: int
) -> list[dict[str, Any]]:
    """Real float32 iterations at 5 steps on one matrix of each kind, up to 2048 rows."""
    late = {(run.name, shape): sigma for run in runs for shape, sigma in run.late.items()}
    late.update({("gaussian", shape): sigma for shape, sigma in gaussian.items()})
    chosen = [row for row in rows if row.steps == 5 and row.shape[0] <= QUICK]
    checks = []
    for row in tqdm(chosen, desc="iterations", unit="matrix"):
        checks += cross_check(row, late[row.source, row.shape][-1], seed)
    return checks


def shape_option(text: str) -> Shape:
    """Read "2048x8192" from the command line."""
    try:
        return as_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a shape is written 2048x8192, got {text!r}") from error


def command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"no Gaussian matrix with a dimension above {QUICK}"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape_option,
        default=list(TABLE_1),
        metavar="MxN",
        help="Gaussian matrices (default: those of Table 1)",
    )
    parser.add_argument(
        "--steps", nargs="+", type=int, default=STEPS, help=f"numbers of steps (default: {STEPS})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of Gaussian matrices (default: 0)")
    parser.add_argument(
        "--spectra", type=Path, default=SPECTRA, help="folder of captured and drawn spectra"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for page and pictures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything, then write page, numbers and pictures."""
    options = command_line(arguments)
    start = time.perf_counter()
    shapes = [shape for shape in options.shapes if not options.quick or shape[1] <= QUICK]
    left_out = [f"{m}x{n}" for m, n in options.shapes if (m, n) not in shapes]
    files = sorted(options.spectra.glob("*.npz"))
    runs = [load_run(file) for file in files if not file.name.startswith("gaussian_")]
    runs.sort(key=lambda run: (run.name != "gpt", run.name))  # the one shown in detail first
    gaussian = gaussian_spectra(shapes, options.spectra, options.seed)
    rows = measure_all(gaussian, runs, options.steps)
    checks = iterate(rows, gaussian, runs, options.seed)
    claims, table = check_claims(rows), table_1(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / "orthogonalization_error.md"
    given = sys.argv[1:] if arguments is None else arguments
    about = {
        "command": shlex.join(["python", "-m", MODULE, *given]),
        **environment(),
        "minutes": (time.perf_counter() - start) / 60,
        "seed": options.seed,
        "left_out": left_out,
        "table": hashlib.sha256(TABLE.read_bytes()).hexdigest()[:12],
        "json": page.with_suffix(".json").name,
    }
    numbers = {
        "about": about,
        "runs": [run.about for run in runs],
        "table_1": table,
        "rows": [asdict(row) for row in rows],
        "cross_check": checks,
        "claims": [asdict(claim) for claim in claims],
    }
    write_json(page.with_suffix(".json"), numbers, indent=None)
    draw_pictures(page, rows, runs)
    write_page(page, rows, runs, table, checks, claims, about)
    holding = sum(claim.holds is True for claim in claims)
    print(f"{holding} of {len(claims)} claims hold; written to {page}")


if __name__ == "__main__":
    main()
