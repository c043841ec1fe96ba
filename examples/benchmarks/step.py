"""Time and memory of one optimizer step: ROOT, a careful Muon, and what can be installed.

    python -m examples.benchmarks.step
    python -m examples.benchmarks.step --quick                          # seconds, to try it
    python -m examples.benchmarks.step --sets llama --optimizers root muon-again
    python -m examples.benchmarks.step --device cuda --sets gpt2-124m

All optimizers update their own copies of the same parameters with the same gradients, in turns, in
one process. Then, apart from the timing, the memory of a step is counted. Before all that: what the
machine can do at most, and how long a step must take at the least.

Writes `step.md` (the page) and `step.json` (all numbers). On a machine that does other things too,
one thread (the default) is best. `pytorch-optimizer` and `heavyball` take part where installed.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from examples.benchmarks.speed.clock import (
    ClockName,
    Times,
    clock_of,
    interleave,
    quartiles,
    speed,
    timed,
)
from examples.benchmarks.speed.command import DTYPES, Command
from examples.benchmarks.speed.machine import Limits, measure_limits
from examples.benchmarks.speed.memory import peak_memory
from examples.benchmarks.speed.operations import work
from examples.benchmarks.speed.optimizers import (
    BASELINE,
    DEFAULT,
    OPTIMIZERS,
    OURS,
    WITHOUT_THRESHOLD,
    on_gpus,
    usual,
)
from examples.benchmarks.speed.sets import SETS, ParameterSet, make_gradients, make_parameters
from examples.benchmarks.speed.step_page import page_text

MODULE = "examples.benchmarks.step"
GRADIENTS = 3  # sets of gradients, used in turn
WARM_UP = 2


class Contest:
    """Optimizers on their own copies of one set of parameters, fed with the same gradients.

    Args:
        chosen: The set of parameters.
        names: Of the optimizers.
        dtype: Of parameters and gradients.
        device: Where they are.
        seed: Of the gradients.
    """

    def __init__(
        self,
        chosen: ParameterSet,
        names: Sequence[str],
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
    ) -> None:
        self.shapes, self.device, self.dtype = chosen.shapes, device, dtype
        made = range(seed, seed + GRADIENTS)
        self.gradients = [make_gradients(self.shapes, number, dtype, device) for number in made]
        # Copied before each step into the same place, so that no optimizer finds it warmer than
        # another, and none changes it for the next.
        self.gradient = [torch.empty_like(gradient) for gradient in self.gradients[0]]
        self.optimizers: dict[str, Optimizer] = {}
        self.first: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        self._parameters: dict[str, list[nn.Parameter]] = {}
        for name in names:
            self._add(name)

    def load(self, name: str, number: int) -> None:
        """Give an optimizer the gradients of a round."""
        for target, source in zip(self.gradient, self.gradients[number % GRADIENTS], strict=True):
            target.copy_(source)
        for parameter, gradient in zip(self._parameters[name], self.gradient, strict=True):
            parameter.grad = gradient.view(parameter.shape)  # some optimizers drop it

    def _add(self, name: str) -> None:
        """Make an optimizer and run its first steps; a peer that cannot is left out and named."""
        entry = OPTIMIZERS[name]
        parameters = make_parameters(self.shapes, self.dtype, self.device)
        if entry.matrices:
            parameters = [nn.Parameter(p.detach().flatten(1)) for p in parameters]
        self._parameters[name] = parameters
        try:
            optimizer = entry.build(parameters)
            for number in range(WARM_UP):
                before = [parameter.detach().clone() for parameter in parameters]
                self.load(name, number)
                seconds = timed(optimizer.step, self.device)[1]
                self.first.setdefault(name, seconds)
            if any(torch.equal(*pair) for pair in zip(before, parameters, strict=True)):
                raise RuntimeError("it left parameters as they were")
        except Exception as error:
            if name in OURS or name == BASELINE:
                raise
            self.missing[name] = _reason(error)
            return
        self.optimizers[name] = optimizer


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"not installed ({error})"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def measure_set(
    set_name: str, names: Sequence[str], limits: Limits, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything about one set of parameters: work, times, memory."""
    chosen, device, dtype = SETS[set_name], options.device, DTYPES[options.dtype]
    contest = Contest(chosen, names, dtype, device, options.seed)
    steps = {name: optimizer.step for name, optimizer in contest.optimizers.items()}
    times = interleave(
        steps,
        options.rounds,
        device=device,
        prepare=contest.load,
        seed=options.seed,
        label=set_name,
    )
    needed = work(chosen.shapes, itemsize=dtype.itemsize)
    floor, clock = needed.floor(limits), clock_of(device, options.threads)
    result = {
        "about": chosen.about,
        "matrices": len(chosen.shapes),
        "elements": chosen.elements,
        "bytes": chosen.elements * dtype.itemsize,
        "largest_stack": chosen.largest_stack,
        **asdict(needed),
        "floor": floor,
        "optimizers": {
            name: measure_optimizer(name, contest, times, clock, floor) for name in steps
        },
        "missing": contest.missing,
    }
    if DEFAULT in times and WITHOUT_THRESHOLD in times:
        ratios = speed(times[DEFAULT], times[WITHOUT_THRESHOLD], clock)
        result["threshold_share"] = [1.0 - ratio for ratio in reversed(ratios)]
    return result


def measure_optimizer(
    name: str, contest: Contest, times: Mapping[str, Times], clock: ClockName, floor: float
) -> dict[str, Any]:
    """What is said of one optimizer; its memory is measured now."""
    seconds = quartiles(getattr(times[name], clock)).median
    contest.load(name, 0)
    return {
        **asdict(times[name]),
        "first": contest.first[name],
        "speed": speed(times[name], times[BASELINE], clock),
        "peak": peak_memory(contest.optimizers[name].step, contest.device),
        "floor_share": floor / seconds if OPTIMIZERS[name].products else None,
    }


def versions(names: Sequence[str]) -> dict[str, str]:
    """Of the packages that the optimizers come from, as far as they are installed."""
    found = {}
    for package in {OPTIMIZERS[name].package for name in names}:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_memory(command: Command, options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse what does not fit into the machine's memory, before an hour has gone into it."""
    largest = max(SETS[name].elements for name in options.sets)
    size = DTYPES[options.dtype].itemsize
    kept = sum(2 if OPTIMIZERS[name].products else 3 for name in names)  # parameters and state
    needed = largest * (4 * kept + 4 + size * (GRADIENTS + 1))
    if options.device.type == "cuda":
        present = torch.cuda.get_device_properties(options.device).total_memory
    else:
        present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        command.parser.error(
            f"{len(names)} optimizers on these sets may need {needed / 2**30:.0f} GiB, and there "
            f"are {present / 2**30:.0f}; name fewer with `--optimizers`, or smaller `--sets`"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write page and numbers."""
    command = Command(MODULE, __doc__, rounds=11)
    add = command.parser.add_argument
    usual_sets = ["gpt2", "vit", "small", "conv"]
    add("--sets", nargs="+", choices=SETS, help=f"of parameters (default: {usual_sets})")
    add("--optimizers", nargs="+", choices=OPTIMIZERS, help="beside the baseline (default: all)")
    add("--dtype", choices=DTYPES, default="float32", help="of parameters (default: float32)")
    options = command.parse(arguments)
    options.sets = options.sets or (["tiny"] if options.quick else usual_sets)
    names = list(dict.fromkeys([BASELINE, *(options.optimizers or usual(options.device))]))
    impossible = set(names) & set(on_gpus()) if options.device.type == "cpu" else ()
    if impossible:
        command.parser.error(
            f"{', '.join(sorted(impossible))}: for GPUs only; give `--device cuda`, or leave it out"
        )
    check_memory(command, options, names)
    start = time.perf_counter()
    limits = measure_limits(options.device, quick=options.quick)
    sets = {}
    for name in options.sets:
        sets[name] = measure_set(name, names, limits, options)
        print(f"{name}: measured, {time.perf_counter() - start:.0f} s", flush=True)
    numbers = {
        "dtype": options.dtype,
        "clock": clock_of(options.device, options.threads),
        "versions": versions(names),
        "limits": asdict(limits),
        "sets": sets,
    }
    print(f"Written to {command.write(options, numbers, page_text)}")


if __name__ == "__main__":
    main()
