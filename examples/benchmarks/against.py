"""CPU time of a step here and in another checkout of this project, in turns.

    git worktree add ../before COMMIT
    python -m examples.benchmarks.against ../before
    python -m examples.benchmarks.against ../before --sets small --rounds 40

One process for each checkout steps the same parameters with the same gradients; every round asks
both, in an order that is drawn anew, and what is compared are times of the same round. Also this
checkout beside itself, which says how much of a difference is noise. Writes `against.md` and
`against.json`.
"""

import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
BUDGET = 0.4
"""Seconds of a round: as many steps as fit, at least one."""


def step_on_request(set_name: str) -> None:
    """Serve a checkout: a line with a number of steps in, their CPU seconds out."""
    import torch

    from examples.benchmarks.speed.sets import SETS, make_gradients, make_parameters
    from lightning_root import ROOT

    torch.set_num_threads(1)
    shapes, cpu = SETS[set_name].shapes, torch.device("cpu")
    parameters = make_parameters(shapes, torch.float32, cpu)
    gradients = make_gradients(shapes, 0, torch.float32, cpu)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.view(parameter.shape)
    optimizer = ROOT([{"params": parameters, "role": "root"}], lr=1e-3)
    for line in sys.stdin:
        began = time.process_time()
        for _ in range(int(line)):
            optimizer.step()
        print(time.process_time() - began, flush=True)


class Served:
    """A process that steps a set of parameters with the code of one checkout."""

    def __init__(self, checkout: Path, set_name: str, stack: ExitStack) -> None:
        code = f"import sys; sys.path.insert(0, {str(checkout)!r}); sys.path.append({str(HERE)!r})"
        code += f"\nimport runpy; runpy.run_path({__file__!r})['step_on_request']({set_name!r})"
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=checkout,
            )
        )
        stack.callback(self._process.kill)

    def seconds(self, steps: int) -> float:
        """CPU time of one step, as the mean of some."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(steps, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline()) / steps


def compare(other: Path, set_name: str, rounds: int, seed: int) -> dict[str, Any]:
    """Seconds of both checkouts and of this one again, a value per round."""
    with ExitStack() as stack:
        folders = {"here": HERE, "other": other.resolve(), "here again": HERE}
        served = {name: Served(folder, set_name, stack) for name, folder in folders.items()}
        for one in served.values():
            one.seconds(2)
        steps = max(1, int(BUDGET / served["here"].seconds(1))) if rounds > 3 else 1
        order, draw = list(served), random.Random(seed)
        times: dict[str, list[float]] = {name: [] for name in served}
        for _ in range(rounds):
            draw.shuffle(order)
            for name in order:
                times[name].append(served[name].seconds(steps))
    return {"steps": steps, "times": times}


def ratio(times: dict[str, list[float]], name: str, beside: str) -> list[float]:
    """Quartiles of the ratios within a round."""
    pairs = zip(times[name], times[beside], strict=True)
    return statistics.quantiles([a / b for a, b in pairs], n=4)


def main(arguments: list[str] | None = None) -> int:
    """Compare, print the page, and keep it."""
    from examples.benchmarks.page import markdown_table, provenance
    from examples.benchmarks.speed.command import Command
    from examples.benchmarks.speed.sets import SETS

    command = Command("examples.benchmarks.against", __doc__, rounds=15, devices=False)
    add = command.parser.add_argument
    add("other", type=Path, help="the other checkout")
    add("--sets", nargs="+", choices=SETS, default=["gpt2", "vit", "small", "conv"])
    options = command.parse(arguments)
    found = {}
    for name in ["small"] if options.quick else options.sets:
        found[name] = compare(options.other, name, options.rounds, options.seed)
        print(f"{name}: {ratio(found[name]['times'], 'here', 'other')[1]:.3f}", flush=True)
    rows = []
    for name, result in found.items():
        times = result["times"]
        low, middle, high = ratio(times, "here", "other")
        noise = ratio(times, "here", "here again")
        rows.append(
            [
                SETS[name].about,
                *(f"{1e3 * statistics.median(times[key]):.1f}" for key in ("other", "here")),
                f"{middle:.3f} ({low:.3f} to {high:.3f})",
                f"{noise[1]:.3f} ({noise[0]:.3f} to {noise[2]:.3f})",
            ]
        )
    head = ["set", "other, ms", "here, ms", "here / other (quartiles)", "here / here again"]
    commit = subprocess.run(
        ["git", "-C", str(options.other), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    about = {"other": commit}
    command.write(
        options,
        {"other": commit, "sets": found},
        lambda values: (
            "\n\n".join(
                [
                    "# A step beside another checkout",
                    "CPU time of one step, one thread, both checkouts in turns in each round; "
                    f"ratios are of the same round. The other checkout is at `{about['other']}`.",
                    markdown_table(head, rows),
                    provenance(values["about"]),
                ]
            )
            + "\n"
        ),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
