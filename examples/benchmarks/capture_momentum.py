"""Train a small model with ROOT and keep the singular values of what it orthogonalizes.

    python -m examples.benchmarks.capture_momentum gpt        # Python's standard library
    python -m examples.benchmarks.capture_momentum digits     # a ViT on scikit-learn's digits
    python -m examples.benchmarks.capture_momentum cifar10 --cifar10 DIR

At chosen steps a hook on the optimizer takes the singular values of every clipped momentum matrix
inside the blocks, divided by the Frobenius norm, in float64. They go to one file of some hundred
kilobytes, which `examples.benchmarks.orthogonalization_error` and fits of coefficients read.
One thread takes six minutes for the GPT, two for the digits and four for CIFAR-10.
"""

import argparse
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import trange  # type: ignore[import-untyped]

from examples.benchmarks.orthogonalization.images import ViT, cifar10, digits
from examples.benchmarks.page import RESULTS
from examples.gpt import GPT
from examples.stdlib_text import StdlibText
from lightning_root import ROOT, WarmupDecayLR
from lightning_root.optim import Stack

SPECTRA = RESULTS / "spectra"
AT = (50, 100, 150, 200, 300, 350, 400)

Captured = dict[tuple[int, str], NDArray[np.float32]]
"""By step and shape ("256x1024"): singular values (matrices, m), each row of norm 1."""

Losses = Iterator[Callable[[], Tensor]]
"""For each step a function that returns the loss of that step's batch."""


def gpt_losses(width: int, depth: int) -> tuple[nn.Module, Losses]:
    """The quick start's GPT, and its loss on one batch of 16 windows of 256 bytes after another."""
    model = GPT(depth=depth, width=width, heads=width // 32, context=256)
    data = StdlibText(context=256, batch_size=16)
    data.setup("fit")
    return model, (partial(model.loss, batch) for batch in data.train_dataloader())


def vit_losses(
    data: tuple[Tensor, Tensor], width: int, depth: int, batch_size: int = 64
) -> tuple[nn.Module, Losses]:
    """The ViT, and its loss on one random batch of `data` after another."""
    patches, labels = data
    model = ViT(patches.shape[1], patches.shape[2], width, depth)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        rows = torch.randint(len(labels), (batch_size,), generator=generator)
        return F.cross_entropy(model(patches[rows]), labels[rows])

    return model, repeat(loss)


def normalised_singular_values(matrices: Tensor) -> NDArray[np.float32]:
    """Singular values (k, m) of matrices (k, m, n), each divided by the Frobenius norm."""
    sigma = torch.linalg.svdvals(matrices.double())
    unit: NDArray[np.float32] = (sigma / sigma.norm(dim=-1, keepdim=True)).float().numpy()
    return unit


def capture(
    model: nn.Module, losses: Losses, at: Sequence[int], lr: float
) -> tuple[Captured, list[float]]:
    """Train until the last of the steps `at` and keep the singular values at each of them.

    Args:
        model: Its blocks must be called `blocks`; matrices outside are trained but not kept.
        losses: The loss to go down, for each step.
        at: Steps, counted from 1.
        lr: Full learning rate; 10 % warm-up, then cosine decay to a tenth.

    Returns:
        Singular values by step and shape, and the loss of every step.
    """
    optimizer = ROOT([], lr=lr)
    optimizer.bind(model)
    schedule = WarmupDecayLR(optimizer, max_steps=max(at))
    parts: dict[tuple[int, str], list[NDArray[np.float32]]] = defaultdict(list)
    history: list[float] = []

    def keep(stack: Stack) -> None:
        inside = [i for i, (name, _) in enumerate(stack.names) if name.startswith("blocks.")]
        if inside and len(history) in at:
            m, n = stack.clipped.shape[-2:]
            sigma = normalised_singular_values(stack.clipped[inside])
            parts[len(history), f"{m}x{n}"].append(sigma)

    optimizer.register_stack_hook(keep)
    with trange(max(at), desc="training", unit="step", mininterval=5) as progress:
        for _ in progress:
            loss = next(losses)()
            history.append(loss.item())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            progress.set_postfix_str(f"loss {history[-1]:.3f}", refresh=False)
    return {key: np.concatenate(rows) for key, rows in parts.items()}, history


def save_captured(path: Path, captured: Captured, about: dict[str, Any]) -> None:
    """Write singular values and what they come from to one npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"{step}|{shape}": rows for (step, shape), rows in captured.items()}
    np.savez_compressed(path, about=json.dumps(about), **arrays)


def load_captured(path: Path) -> tuple[Captured, dict[str, Any]]:
    """Read what `save_captured` wrote."""
    captured: Captured = {}
    with np.load(path) as arrays:
        about: dict[str, Any] = json.loads(str(arrays["about"]))
        for key in arrays.files:
            if key != "about":
                step, shape = key.split("|")
                captured[int(step), shape] = arrays[key]
    return captured, about


RUNS: dict[str, dict[str, Any]] = {
    "gpt": {"title": "GPT on Python's standard library", "width": 256, "depth": 4, "lr": 1.2e-2},
    "digits": {"title": "ViT on scikit-learn's digits", "width": 192, "depth": 4, "lr": 3e-3},
    "cifar10": {"title": "ViT on CIFAR-10", "width": 192, "depth": 4, "lr": 3e-3},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the model named on the command line and write its file."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmarks.capture_momentum",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("run", choices=RUNS, help="model and data")
    parser.add_argument("--cifar10", type=Path, metavar="DIR", help="folder of parquet files")
    parser.add_argument("--width", type=int, help="a multiple of 32 (default: 256, ViT 192)")
    parser.add_argument("--depth", type=int, help="number of blocks (default: 4)")
    parser.add_argument("--at", type=int, nargs="+", default=AT, help=f"steps (default: {AT})")
    parser.add_argument("--output", type=Path, default=SPECTRA, help="folder for the file")
    options = parser.parse_args(arguments)
    if (options.run == "cifar10") != (options.cifar10 is not None):
        parser.error("`--cifar10 DIR` belongs to the run `cifar10`, which needs it")
    run = RUNS[options.run]
    width, depth = options.width or run["width"], options.depth or run["depth"]
    if width % 32:
        parser.error(f"`--width` must be a multiple of 32, the width of a head, got {width}")
    torch.manual_seed(0)
    if options.run == "gpt":
        model, losses = gpt_losses(width, depth)
    else:
        try:
            data = cifar10(options.cifar10) if options.cifar10 else digits()
        except (ModuleNotFoundError, FileNotFoundError) as error:
            parser.error(str(error))
        model, losses = vit_losses(data, width, depth)
    captured, history = capture(model, losses, options.at, run["lr"])
    about = {
        **run,
        "width": width,
        "depth": depth,
        "steps": max(options.at),
        "first_loss": history[0],
        "last_loss": float(np.mean(history[-20:])),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    path = options.output / f"{options.run}.npz"
    save_captured(path, captured, about)
    shapes = sorted({shape for _, shape in captured})
    print(f"singular values of {', '.join(shapes)} at steps {list(options.at)} written to {path}")


if __name__ == "__main__":
    main()
