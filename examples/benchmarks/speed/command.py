"""What the four speed benchmarks share on the command line, and how they write results."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks.page import RESULTS, environment
from lightning_root._files import write_json

INSTRUCTIONS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
"""Variables that keep libraries from a CPU's newest instructions; part of the command."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Command:
    """One benchmark's options, and the clock of its run.

    Args:
        module: Name of the benchmark's module.
        description: Its docstring.
        rounds: Default of `--rounds`.
        devices: Whether `--device` chooses where it runs; False is for the CPU alone.
    """

    def __init__(
        self, module: str, description: str | None, rounds: int, *, devices: bool = True
    ) -> None:
        self.module, self.name = module, module.rpartition(".")[2]
        self._start = time.perf_counter()
        self._given: Sequence[str] = ()
        self.parser = argparse.ArgumentParser(
            prog=f"python -m {module}", description=(description or "").partition("\n")[0]
        )
        add = self.parser.add_argument
        add("--quick", action="store_true", help="small inputs, 3 rounds: to try it, seconds")
        add("--rounds", type=int, help=f"times each is run (default: {rounds})")
        add("--threads", type=int, default=1, help="of torch, on a CPU (default: 1)")
        self.parser.set_defaults(device=torch.device("cpu"))
        if devices:
            add("--device", type=torch.device, help="cpu or cuda (default: cpu)")
        add("--seed", type=int, default=0, help="of inputs and order (default: 0)")
        add("--output", type=Path, default=RESULTS, help="folder for page and numbers")
        self._rounds = rounds

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Read the options, check them, and let torch use as many threads as they say."""
        self._given = sys.argv[1:] if arguments is None else arguments
        options = self.parser.parse_args(arguments)
        if options.rounds is None:
            options.rounds = 3 if options.quick else self._rounds
        for name in ("rounds", "threads"):
            if getattr(options, name) < 1:
                self.parser.error(f"`--{name}` must be at least 1, got {getattr(options, name)}")
        if options.device.type not in ("cpu", "cuda"):
            self.parser.error(f"`--device` must be cpu or cuda, got {options.device}")
        if options.device.type == "cuda" and not torch.cuda.is_available():
            self.parser.error("`--device cuda`: torch finds no GPU here; leave it out for the CPU")
        torch.set_num_threads(options.threads)
        return options

    def write(
        self,
        options: argparse.Namespace,
        numbers: Mapping[str, Any],
        page: Callable[[Mapping[str, Any]], str],
    ) -> Path:
        """Write the numbers and the page that is made of them; return the page's path."""
        path: Path = options.output / f"{self.name}.md"
        options.output.mkdir(parents=True, exist_ok=True)
        gpu = options.device.type == "cuda"
        limits = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
        about = {
            "command": " ".join([*limits, shlex.join(["python", "-m", self.module, *self._given])]),
            **environment(),
            "gpu": torch.cuda.get_device_name(options.device) if gpu else None,
            "minutes": (time.perf_counter() - self._start) / 60,
            "rounds": options.rounds,
            "seed": options.seed,
            "quick": options.quick,
            "json": path.with_suffix(".json").name,
        }
        numbers = {"about": about, **numbers}
        write_json(path.with_suffix(".json"), numbers, indent=None)
        path.write_text(page(numbers), "utf-8")
        return path
