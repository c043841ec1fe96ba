"""Fit the schedules behind `coefficients="adaptive"` and compare them with the published ones.

One schedule per number of steps, each with its own triple per step, for matrices of any shape: the
mean of (p_T(sigma) - 1)^2 is minimised over Gaussian matrices of five shapes (60 %) and singular
values spread log-uniformly over [3e-3, 1] (40 %), with a penalty where p_T exceeds 1.15 on [0,
1.05]. float64, deterministic on one machine; about a minute on one core.

    python -m examples.benchmarks.default_schedule             # prints the comparison
    python -m examples.benchmarks.default_schedule --write     # and rewrites the shipped table
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

import lightning_root.coefficients
from lightning_root.coefficients import lookup, marchenko_pastur, mean_square_error, output_range
from lightning_root.coefficients.fit import compose
from lightning_root.coefficients.schedules import CANS, MUON, NEWTON_SCHULZ, POLAR_EXPRESS, QUINTIC
from lightning_root.functional import Triple

TABLE = Path(lightning_root.coefficients.__file__).parent / "tables" / "adaptive.json"
SHAPES = {
    (768, 768): 0.15,
    (256, 256): 0.15,
    (768, 3072): 0.1,
    (2048, 2048): 0.1,
    (4096, 16384): 0.1,
}
LOG_UNIFORM = 0.4
SHIFTED_CANS = tuple((a / 1.06, b / 1.06**3, c / 1.06**5) for a, b, c in CANS)  # bounded past 1
GRID = torch.linspace(1e-3, 1.05, 2000, dtype=torch.float64)

Spectrum = tuple[Tensor, Tensor]


def log_uniform(low: float, high: float, nodes: int = 800) -> Spectrum:
    """Singular values spread evenly in log sigma over [low, high], with equal weights."""
    sigma = torch.linspace(math.log(low), math.log(high), nodes, dtype=torch.float64).exp()
    return sigma, torch.full_like(sigma, 1.0 / nodes)


def mixture() -> Spectrum:
    """The spectrum that the shipped schedules are fitted to."""
    parts = [(share, marchenko_pastur(*shape)) for shape, share in SHAPES.items()]
    parts.append((LOG_UNIFORM, log_uniform(3e-3, 1.0)))
    sigma = torch.cat([spectrum[0] for _, spectrum in parts])
    return sigma, torch.cat([share * spectrum[1] for share, spectrum in parts])


def objective(triples: Tensor, spectrum: Spectrum) -> Tensor:
    """Mean square error of a schedule (T, 3) plus the penalty that keeps it bounded."""
    sigma, weight = spectrum
    error = (weight * (compose(triples, sigma) - 1.0).square()).sum()
    return error + 10.0 * (compose(triples, GRID) - 1.15).clamp(min=0.0).square().mean()


def descend(start: list[Triple], spectrum: Spectrum) -> tuple[list[Triple], float]:
    """L-BFGS from one starting schedule, restarted three times."""
    triples = torch.tensor(start, dtype=torch.float64, requires_grad=True)

    def closure() -> Tensor:
        triples.grad = None
        loss = objective(triples, spectrum)
        loss.backward()
        return loss

    for _ in range(3):
        torch.optim.LBFGS(
            [triples],
            max_iter=500,
            tolerance_grad=1e-11,
            tolerance_change=1e-14,
            history_size=50,
            line_search_fn="strong_wolfe",
        ).step(closure)
    rows = [(a, b, c) for a, b, c in triples.detach().tolist()]
    return rows, float(objective(triples.detach(), spectrum))


def fit(steps: int, shorter: list[Triple] | None, spectrum: Spectrum) -> list[Triple]:
    """The best bounded schedule found from the published ones and from the one a step shorter."""
    starts: list[list[Triple]] = [[MUON] * steps]
    for base in (SHIFTED_CANS, POLAR_EXPRESS[:6], QUINTIC):
        if steps <= len(base):
            starts += [list(base[:steps]), list(base[-steps:]), [*base[: steps - 1], base[-1]]]
        else:
            starts.append([*base, *[NEWTON_SCHULZ] * (steps - len(base))])
    if shorter is not None:
        starts += [[*shorter, NEWTON_SCHULZ], [shorter[0], *shorter]]
    fits = [descend(start, spectrum) for start in starts]
    bounded = [fit for fit in fits if is_bounded(fit[0])]
    return min(bounded, key=lambda fit: fit[1])[0]


def is_bounded(triples: list[Triple]) -> bool:
    """Whether no singular value in [0, 1.02] leaves [0, 1.3]."""
    low, high = output_range(triples, upper=1.02)
    return low >= 0.0 and high <= 1.3


def compare(steps: int) -> None:
    """Print the mean square error of each set on each spectrum."""
    spectra = {f"{m} x {n}": marchenko_pastur(m, n) for m, n in SHAPES}
    spectra["log-uniform"] = log_uniform(3e-3, 1.0)
    print(f"\n{steps} steps" + "".join(f"{name:>14}" for name in spectra) + "   p_T on [0, 1.02]")
    for name in ("muon", "polar_express", "cans", "adaptive"):
        triples = list(lookup((2, 2), name, steps).triples)
        errors = [mean_square_error(triples, *spectrum) for spectrum in spectra.values()]
        low, high = output_range(triples, upper=1.02)
        print(f"{name:13}" + "".join(f"{e:14.6f}" for e in errors) + f"   [{low:.3g}, {high:.4g}]")


def main() -> None:
    """Fit, write if asked, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"rewrite {TABLE.name} in the package")
    arguments = parser.parse_args()
    if arguments.write:
        spectrum = mixture()
        schedules: dict[int, list[Triple]] = {}
        for steps in range(1, 9):
            schedules[steps] = fit(steps, schedules.get(steps - 1), spectrum)
            print(f"fitted {steps} steps")
        rows = {
            str(steps): [[float(f"{v:.10g}") for v in row] for row in triples]
            for steps, triples in schedules.items()
        }
        source = "examples/benchmarks/default_schedule.py"
        TABLE.write_text(json.dumps({"source": source, "schedules": rows}, indent=1) + "\n")
    for steps in (3, 4, 5, 6):
        compare(steps)


if __name__ == "__main__":
    main()
