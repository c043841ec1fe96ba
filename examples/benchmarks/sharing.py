"""What sharing the orthogonalization among ranks saves: one step, with and without it in turns.

    python -m examples.benchmarks.sharing
    python -m examples.benchmarks.sharing --ranks 4
    python -m examples.benchmarks.sharing --quick                      # seconds, to try it

Every rank is a process of this machine with its own copy of the hidden matrices of GPT-2 small, the
same on all, as under DDP; they talk through gloo. All ranks step together, and a step has the time
of the slowest. Only the optimizer is timed: no model runs.

Writes `sharing.md` (the page) and `sharing.json` (all numbers).
"""

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm  # type: ignore[import-untyped]

from examples.benchmarks.page import markdown_table, provenance
from examples.benchmarks.speed.clock import quartiles
from examples.benchmarks.speed.command import Command
from examples.benchmarks.speed.sets import SETS, make_gradients, make_parameters
from examples.benchmarks.speed.words import milliseconds, quick_warning
from lightning_root import ROOT
from lightning_root._files import read_json, write_json
from lightning_root.distributed import Matrices, plan_ownership

MODULE = "examples.benchmarks.sharing"
WAYS = {"replicated": False, "shared": True}
TIMES = "times.json"
WARM_UP = 2


def on_rank(rank: int, options: argparse.Namespace, folder: Path) -> None:
    """What one process does: all steps, and rank 0 writes the times down."""
    torch.set_num_threads(options.threads)
    meeting = (folder / "meeting").as_uri()  # a file: no port is taken
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.ranks)
    shapes = SETS["tiny" if options.quick else options.set].shapes
    cpu = torch.device("cpu")
    parameters = make_parameters(shapes, torch.float32, cpu)
    for parameter, gradient in zip(
        parameters, make_gradients(shapes, options.seed, torch.float32, cpu), strict=True
    ):
        parameter.grad = gradient
    named = [(f"hidden.{number}.weight", p) for number, p in enumerate(parameters)]
    optimizer = ROOT([{"params": named, "role": "root"}])
    order = random.Random(options.seed)  # the same on every rank
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    rounds = range(-WARM_UP, options.rounds)
    for number in tqdm(rounds, desc="steps", unit="round", disable=rank > 0):
        for way in order.sample(list(WAYS), len(WAYS)):
            optimizer.share(dist.group.WORLD if WAYS[way] else None)
            dist.barrier()
            start = time.perf_counter()
            optimizer.step()
            dist.barrier()  # the step of the slowest rank
            if number >= 0:
                times[way].append(time.perf_counter() - start)
    if rank == 0:
        write_json(folder / TIMES, times)
    dist.destroy_process_group()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Start the ranks and take the times of rank 0."""
    with TemporaryDirectory() as folder:
        spawn(on_rank, (options, Path(folder)), nprocs=options.ranks)
        times: dict[str, list[float]] = read_json(Path(folder, TIMES))
    ratios = [a / b for a, b in zip(times["shared"], times["replicated"], strict=True)]
    return {"times": times, "ratios": ratios}


def planned(options: argparse.Namespace) -> dict[str, float]:
    """What the plan says: shares of operations, and bytes."""
    shapes = SETS["tiny" if options.quick else options.set].shapes
    matrices = [
        Matrices(f"hidden.{i}.weight", 0, (shape[0], torch.Size(shape[1:]).numel()))
        for i, shape in enumerate(shapes)
    ]
    plan = plan_ownership(matrices, options.ranks)
    return {"share": plan.share, "received": max(plan.received), "bound": plan.bytes_bound}


def page_text(numbers: Mapping[str, Any]) -> str:
    """The Markdown page of what the JSON file holds."""
    about, plan = numbers["about"], numbers["plan"]
    ratio = quartiles(numbers["ratios"])
    body = [[way, milliseconds(quartiles(times).median)] for way, times in numbers["times"].items()]
    parts = [
        "# Sharing the orthogonalization",
        f"One step of ROOT for the hidden matrices of {numbers['set']}, float32, on "
        f"{numbers['ranks']} processes that hold the same and talk through gloo.",
        provenance(about),
        quick_warning(about),
        "## Two numbers first",
        f"The busiest rank has {100 * plan['share']:.1f} % of the operations, so sharing cannot "
        f"bring a step below {plan['share']:.3f} of its time; a rank receives "
        f"{plan['received'] / 2**20:.1f} MiB of updates, of which "
        f"{plan['bound'] / 2**20:.1f} MiB are the least that any way needs.",
        "## Measured",
        f"{about['rounds']} rounds, in each of which both take a step, in an order drawn anew. A "
        "step ends when the slowest rank has ended. Median wall time:",
        markdown_table(["way", "ms"], body),
        f"Shared over replicated, of the same round: {ratio.median:.3f} "
        f"({ratio.low:.3f} to {ratio.high:.3f} are the quartiles).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write page and numbers."""
    command = Command(MODULE, __doc__, rounds=15, devices=False)
    add = command.parser.add_argument
    add("--ranks", type=int, default=2, help="processes (default: 2)")
    add("--set", choices=list(SETS), default="gpt2", help="of parameters (default: gpt2, 4 layers)")
    options = command.parse(arguments)
    numbers = {
        "set": SETS["tiny" if options.quick else options.set].about,
        "ranks": options.ranks,
        "plan": planned(options),
        **measure(options),
    }
    print(f"Written to {command.write(options, numbers, page_text)}")


if __name__ == "__main__":
    main()
