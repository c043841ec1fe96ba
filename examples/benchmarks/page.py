"""What every results page is made of: the machine, the command, tables."""

import datetime
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_root.kernels.rates import processor

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """The machine and the software."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": processor().strip(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def provenance(about: Mapping[str, Any], *further: str) -> str:
    """The command, when and where it ran, with what, and where all numbers are.

    Args:
        about: `environment()` with `command`, `minutes` and `json`, and `gpu` where there is one.
        further: Sentences that go before the last one.
    """
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    gpu = f"{about['gpu']}; " if about.get("gpu") else ""
    words = (
        f"{about['date']}; {gpu}{about['cpu']}, {about['cores']} cores, {about['capability']}, "
        f"{threads}; torch {about['torch']}, Python {about['python']}; "
        f"{about['minutes']:.1f} minutes."
    )
    numbers = f"All numbers: [{about['json']}]({about['json']})."
    return f"    {about['command']}\n\n" + " ".join([words, *further, numbers])


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns after the first are flush right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in body)])
