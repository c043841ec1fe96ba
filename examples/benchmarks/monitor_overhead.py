"""What `ROOTMonitor` costs: the quick start with it and without it, in turns.

    python -m examples.benchmarks.monitor_overhead
    python -m examples.benchmarks.monitor_overhead --quick    # a tiny model, seconds

One process trains the quick start's model. Every ten steps, the interval between two points of the
monitor, it is put into the Trainer or taken out: off, on, on, off, so that a drift of the machine
is in both. A block with the monitor is compared with the one without it beside it, in CPU time of
the whole process, which other programs disturb less than the time that passes. Blocks without it
are compared with each other too: what those differ by is noise.

Then the quick start runs as it is, validations, checkpoints and heat maps included, and the time
within the monitor is added up by what it is spent on.

Options that are not listed go to the quick start's own command line, such as `--data.root`. Writes
`monitor_overhead.md` (the page) and `.json` (all numbers). One thread (`OMP_NUM_THREADS=1`) is best
on a machine that does other things too. Needs matplotlib: `pip install "lightning-root[plot]"`.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from examples.benchmarks.monitoring.blocks import WARM_UP, Block, Turns, compare
from examples.benchmarks.monitoring.page import verdict, write_page
from examples.benchmarks.monitoring.parts import timed
from examples.benchmarks.page import RESULTS, environment
from lightning_root import ROOTMonitor
from lightning_root._files import write_json
from lightning_root.cli import ROOTCLI
from lightning_root.diagnostics import RunSummary

MODULE = "examples.benchmarks.monitor_overhead"
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
STEPS = 10
"""Of a block: one point of the monitor."""

QUICK = [
    *("--model.depth=1", "--model.width=32", "--model.heads=2", "--model.context=32"),
    *("--data.batch_size=2", "--data.validation_windows=4"),
]


def quickstart(folder: str, options: Sequence[str]) -> tuple[ROOTCLI, ROOTMonitor]:
    """The quick start, ready to be fitted, and its monitor.

    Args:
        folder: For its logs.
        options: Of its command line.
    """
    arguments = [
        f"--config={QUICKSTART}",
        f"--trainer.logger.init_args.save_dir={folder}",
        f"--trainer.log_every_n_steps={STEPS}",
        "--trainer.enable_model_summary=false",
        *options,
    ]
    with patch.object(sys, "argv", sys.argv[:1]):  # LightningCLI warns of two command lines
        cli = ROOTCLI(args=arguments, run=False, save_config_callback=None)
    (monitor,) = (c for c in callbacks_of(cli) if isinstance(c, ROOTMonitor))
    return cli, monitor


def callbacks_of(cli: ROOTCLI) -> list[Callback]:
    """Of its Trainer, whose types leave them out."""
    found: list[Callback] = cli.trainer.callbacks  # type: ignore[attr-defined]
    return found


def in_turns(pairs: int, options: Sequence[str]) -> list[Block]:
    """Train with the monitor and without it, in turns; without validation.

    Args:
        pairs: Blocks with the monitor; as many are without it.
        options: Of the quick start's command line.
    """
    limits = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
    limits.append(f"--trainer.max_steps={(2 * pairs + WARM_UP) * STEPS}")
    with tempfile.TemporaryDirectory() as folder:
        cli, monitor = quickstart(folder, [*options, *limits])
        turns = Turns(monitor, STEPS, pairs)
        others = (ModelCheckpoint, RunSummary)  # they want validations
        callbacks_of(cli)[:] = [c for c in callbacks_of(cli) if not isinstance(c, others)]
        callbacks_of(cli).append(turns)
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return turns.blocks


def whole_run(steps: int, every: int, options: Sequence[str]) -> dict[str, Any]:
    """The quick start as it is, and what its monitor takes, in CPU seconds.

    Args:
        steps: Of the run.
        every: Steps between validations.
        options: Of the quick start's command line.
    """
    length = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={every}"]
    with tempfile.TemporaryDirectory() as folder:
        cli, monitor = quickstart(folder, [*options, *length])
        with timed(monitor) as clock:
            began = time.process_time()
            cli.trainer.fit(cli.model, datamodule=cli.datamodule)
            seconds = time.process_time() - began
    parts = dict(clock.seconds)
    total = sum(parts.values())
    at_steps = sum(value for part, value in parts.items() if "heat maps" not in part)
    return {
        "steps": steps,
        "validations": steps // every,
        "cpu": seconds,
        "monitor": total,
        "per_step": at_steps / (seconds - total),
        "parts": parts,
    }


def command_line(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the options, and those that are the quick start's."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=(__doc__ or "").partition("\n")[0],
        epilog="Other options go to the quick start's own command line.",
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model, 4 pairs, 40 steps")
    parser.add_argument(
        "--pairs", type=int, default=40, help="blocks with the monitor (default: 40)"
    )
    parser.add_argument("--steps", type=int, default=400, help="of the whole run (default: 400)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for page and numbers")
    options, others = parser.parse_known_args(arguments)
    if options.quick:
        options.pairs, options.steps, others = 4, 40, [*QUICK, *others]
    if options.pairs < 4:
        parser.error(f"`--pairs` must be at least 4, got {options.pairs}")
    return options, others


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then write page and numbers."""
    options, others = command_line(arguments)
    start = time.perf_counter()
    blocks = in_turns(options.pairs, others)
    run = whole_run(options.steps, max(1, options.steps // 10), others)
    page = options.output / "monitor_overhead.md"
    given = sys.argv[1:] if arguments is None else arguments
    about = {
        "command": shlex.join(["python", "-m", MODULE, *given]),
        **environment(),
        "lightning": lightning.__version__,
        "minutes": (time.perf_counter() - start) / 60,
        "pairs": options.pairs,
        "steps": STEPS,
        "json": page.with_suffix(".json").name,
    }
    numbers = {
        "about": about,
        "blocks": {clock: compare(blocks, clock) for clock in ("cpu", "wall")},
        "run": run,
        "every_block": [asdict(block) for block in blocks],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(page.with_suffix(".json"), numbers, indent=None)
    write_page(page, numbers)
    print(f"{verdict(numbers)} Written to {page}")


if __name__ == "__main__":
    main()
