"""What ROOTMonitor shows of a run, and how outliers in the gradients look.

    python -m examples.guides.diagnose --output logs/diagnose    # needs matplotlib

Trains the small classifier three times with the same batches: with clean gradients; with outliers,
one entry in a thousand of the hidden matrices' gradients replaced by +-30 times the largest one
(`examples.noise.GradientOutliers`); and with the same outliers, but without the threshold. Each run
writes TensorBoard's files, and the second one a report. What to look at (in the logs `/mean`,
`/min` or `/max` of all matrices follows the names, but for `root/skipped`):

- `train/loss`, `val/loss`: whether there is anything to diagnose at all. Here the outliers cost
  0.02 of the held-out loss, and 0.06 without the threshold (one seed);
- `root/kurtosis`: the tail of the momentum; 3 for Gaussian entries, about 4 in the clean run, 85
  with outliers. This is where they show first: momentum adds up some twenty steps, and still each
  outlier stands out of it;
- `root/outlier_energy`: the share of the momentum's energy that lies beyond the threshold: 0.031
  for Gaussian momentum at the 0.9 quantile, 0.06 in the clean run, 0.65 with outliers. Where it is
  above 0.7 for three points in a row, an alert names the parameter, as it does here. The share of
  the entries, `root/outlier_fraction`, tells nothing: a quantile clips a tenth of them in any case;
- `root/relative_threshold`: the threshold in units of the momentum's root mean square: 1.64 for
  Gaussian momentum, and less the more outliers there are, because they make up the mean square;
- `root/cosine`: between the momentum and the update, the price of orthogonalizing;
- `root/orth_error`, `root/sigma_min`, `root/sigma_max`: how far the update is from orthogonal.
  Where it is large, the coefficients do not fit the momentum's spectrum: see `ROOTRefit`. It is no
  detector of outliers: here it falls with them, for random entries raise small singular values;
- `root/update_rms`: constant but for what orthogonalization misses; `root/update_to_weight`: the
  learning rate times update over weight. Both tell of learning rates, not of outliers;
- `root/skipped`: updates left out because a gradient was not finite; 0 in a healthy run.

The heat maps show the same by layer (rows) and step (columns): a layer that differs from the others
is a row of another colour, and something that befalls all layers at one step is a column. The
histograms show one matrix of each shape in turn: its momentum in units of the threshold, where
outliers lie beyond 1, and the singular values of its update, which should gather at 1.

What to do about outliers: keep the threshold; make it stronger with `outlier_quantile=0.85`, or let
"auto" choose one for each matrix; and look at the data and at the precision first, for outliers as
large as these are a fault of one of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from examples.guides.digits import Classifier, digits, held_out_loss, make_trainer
from examples.noise import GradientOutliers
from lightning_root import ROOTMixin, ROOTMonitor
from lightning_root.cli import main as lightning_root
from lightning_root.cli.output import text_table

SHOWN = ("kurtosis/mean", "outlier_energy/mean", "relative_threshold/mean", "orth_error/mean")


class Net(ROOTMixin, Classifier):
    """The classifier with ROOT and some of its options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.root_options = {"lr": 1e-2, "warmup_steps": 5, **options}


def train(folder: Path, name: str, steps: int, noise: bool, **options: Any) -> dict[str, float]:
    """Train once with the monitor; what the last point showed, and the held-out loss in nats."""
    model = Net(**options)
    callbacks: list[Any] = [ROOTMonitor(log_every_n_steps=4)]
    if noise:
        callbacks.insert(0, GradientOutliers(rate=0.001, size=30.0))
    logger = TensorBoardLogger(folder, name=name, version="", default_hp_metric=False)
    trainer = make_trainer(steps, logger=logger, callbacks=callbacks)
    trainer.fit(model, digits())
    shown = {tag: float(trainer.callback_metrics[f"root/{tag}"]) for tag in SHOWN}
    return {"held-out loss": held_out_loss(model), **shown}


def main(folder: Path, report: bool = True) -> dict[str, dict[str, float]]:
    """Train three times and print what differs.

    Args:
        folder: Where the runs are written, one below it for each.
        report: Write the page of the run with outliers, and say how to compare all.
    """
    runs: dict[str, dict[str, Any]] = {
        "clean": {"noise": False},
        "outliers": {"noise": True},
        "outliers_no_threshold": {"noise": True, "outlier_quantile": None},
    }
    seen = {name: train(folder, name, 60, **run) for name, run in runs.items()}
    rows = [
        (name, *(f"{value:.3f}" for value in numbers.values())) for name, numbers in seen.items()
    ]
    print(f"\n{text_table(('run', *seen['clean']), rows)}")
    if report:
        lightning_root(["report", str(folder / "outliers")])
        names = " ".join(str(folder / name) for name in runs)
        print(f"\nto compare them:  python -m lightning_root compare {names}")
        print(f"to see the curves:  tensorboard --logdir {folder}")
    return seen


def command(arguments: Sequence[str] | None = None) -> None:
    """Read where to write; a temporary folder and no report if that is not said."""
    parser = argparse.ArgumentParser(description="What ROOTMonitor shows of outliers.")
    parser.add_argument("--output", type=Path, help="folder for the runs and reports")
    output = parser.parse_args(arguments).output
    if output is not None:
        main(output)
        return
    with TemporaryDirectory() as folder:
        main(Path(folder), report=False)


if __name__ == "__main__":
    command()
