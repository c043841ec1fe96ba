"""CPU time and state of a step with preconditioning, beside the same step without it.

    python -m examples.benchmarks.precondition
    python -m examples.benchmarks.precondition --sets gpt2 --rounds 2

A round is as many steps as lie between two renewals of the roots, so that its mean has one of them.
The variants take turns within it. Writes `precondition.md` and `precondition.json`.
"""

import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from examples.benchmarks.page import markdown_table, provenance
from examples.benchmarks.speed.command import Command
from examples.benchmarks.speed.sets import SETS, make_gradients, make_parameters
from lightning_root import ROOT

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "auto": {"precondition": "auto"},
    "covariance, smaller side": {"precondition": "covariance", "precondition_sides": "smaller"},
    "covariance, both sides of near squares": {"precondition": "covariance"},
    "soap, smaller side": {"precondition": "soap", "precondition_sides": "smaller"},
}
PERIOD = 10
"""Steps from one renewal to the next, the default."""


def prepared(set_name: str, options: dict[str, Any], seed: int, device: Any) -> ROOT:
    """Make an optimizer of a set of matrices, whose gradients are there, after its first step."""
    shapes = SETS[set_name].shapes
    parameters = make_parameters(shapes, torch.float32, device)
    gradients = make_gradients(shapes, seed, torch.float32, device)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.view(parameter.shape)
    # q, k and v are matrices of their own, three of which lie in a weight.
    thirds = {f"{i}": {"rows": 3} for i, s in enumerate(shapes) if s[0] == 3 * math.prod(s[1:])}
    named = [(str(number), parameter) for number, parameter in enumerate(parameters)]
    optimizer = ROOT(named, lr=1e-3, rules={**thirds, "*": "root"}, **options)
    optimizer.step()
    return optimizer


def state_share(optimizer: ROOT) -> float:
    """Bytes of the preconditioner's state relative to those of the matrices."""
    parameters = [p for p in optimizer.state if isinstance(p, Tensor)]
    kept = [
        optimizer.state[p]["preconditioner"]
        for p in parameters
        if "preconditioner" in optimizer.state[p]
    ]
    own = sum(p.numel() * p.element_size() for p in parameters)
    return sum(value.numel() * value.element_size() for value in kept) / own


def compare(set_name: str, rounds: int, seed: int, device: Any) -> dict[str, Any]:
    """Return the mean seconds of a step in each round, and the share of state, by variant."""
    made = {name: prepared(set_name, options, seed, device) for name, options in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        sums = dict.fromkeys(made, 0.0)
        for _ in range(PERIOD):
            for name, optimizer in made.items():
                began = time.process_time()
                optimizer.step()
                sums[name] += time.process_time() - began
        for name, total in sums.items():
            seconds[name].append(total / PERIOD)
    state = {name: state_share(optimizer) for name, optimizer in made.items()}
    return {"seconds": seconds, "state": state}


def main(arguments: list[str] | None = None) -> int:
    """Compare, print the page, and keep it."""
    command = Command("examples.benchmarks.precondition", __doc__, rounds=3, devices=False)
    command.parser.add_argument("--sets", nargs="+", choices=SETS, default=["gpt2", "vit", "small"])
    options = command.parse(arguments)
    found, rows = {}, []
    for name in ["small"] if options.quick else options.sets:
        found[name] = compare(name, options.rounds, options.seed, options.device)
        base = found[name]["seconds"]["none"]
        for variant, seconds in found[name]["seconds"].items():
            ratios = [own / plain for own, plain in zip(seconds, base, strict=True)]
            cells = [f"{1e3 * statistics.median(seconds):.1f}", f"{statistics.median(ratios):.2f}"]
            rows.append([SETS[name].about, variant, *cells, f"{found[name]['state'][variant]:.2f}"])
            print(*rows[-1], sep=" | ", flush=True)
    head = ["set", "`precondition`", "ms a step", "beside none", "state, of the matrices' bytes"]
    command.write(
        options,
        {"sets": found},
        lambda values: (
            "\n\n".join(
                [
                    "# A step with preconditioning",
                    "CPU time of a step, the renewal of the roots every tenth step included; "
                    "default options else; medians of rounds.",
                    markdown_table(head, rows),
                    provenance(values["about"]),
                ]
            )
            + "\n"
        ),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
