"""Draw the curves of several runs into one picture: over steps and over wall time.

    python -m examples.curves logs/quickstart/version_0 logs/adamw/version_0 --output curves.png

Each run folder is one that a TensorBoard logger wrote. The legend names optimizer and learning
rate, read from the `config.yaml` that the command line saves beside the events; without that file
it names the folder. Needs matplotlib: `pip install "lightning-root[plot]"`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one run.

    Args:
        label: What the legend says.
        steps: Step of each point.
        minutes: Minutes from the first event of the run to each point.
        values: Value of each point.
    """

    label: str
    steps: list[int]
    minutes: list[float]
    values: list[float]


def read_curve(folder: Path, tag: str) -> Curve:
    """Read metric `tag` from the event files in `folder`.

    Raises:
        ValueError: If the folder has no event file, or none with that metric.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0 = keep every point
    tags = events.Reload().Tags()["scalars"] if folder.is_dir() else []
    if not tags:
        raise ValueError(
            f"`RUN_DIR` must hold TensorBoard event files with scalars, found none in {folder}; "
            "give the `log folder` that the run's summary names"
        )
    if tag not in tags:
        raise ValueError(
            f"`--tag` must be a metric of {folder}, got {tag!r}; it has {sorted(tags)}"
        )
    points = events.Scalars(tag)
    start = events.FirstEventTimestamp()
    return Curve(
        label=describe(folder),
        steps=[point.step for point in points],
        minutes=[(point.wall_time - start) / 60 for point in points],
        values=[point.value for point in points],
    )


def describe(folder: Path) -> str:
    """Name the run by optimizer and learning rate, or by its folder if no config was saved."""
    path = folder / "config.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text()) if path.is_file() else {}
    optimizer = config.get("optimizer")
    if not optimizer:
        return f"{folder.parent.name}/{folder.name}"
    options = optimizer.get("init_args", {})
    name = optimizer["class_path"].rpartition(".")[2]
    coefficients = options.get("coefficients")
    words = [coefficients] if isinstance(coefficients, str) else []
    if "outlier_quantile" in options and options["outlier_quantile"] is None:
        words.append("no threshold")
    variant = f" ({', '.join(words)})" if words else ""
    return f"{name}{variant}, lr {options.get('lr', 'default')}"


def draw(curves: Sequence[Curve], tag: str, output: Path, *, steps_only: bool = False) -> None:
    """Draw `curves` over steps (left) and over minutes (right) into the image file `output`.

    Minutes compare runs only if each had the machine to itself; `steps_only` leaves them out.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'drawing needs matplotlib; install it with `pip install "lightning-root[plot]"`'
        ) from error
    panels = ["step"] if steps_only else ["step", "minutes since the start of the run"]
    figure = Figure(figsize=(2 + 4 * len(panels), 4), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.5}
    for axes, panel in zip(row, panels, strict=True):
        for curve in curves:
            times = curve.steps if panel == "step" else curve.minutes
            axes.plot(times, curve.values, label=curve.label, **style)
        axes.set(xlabel=panel)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set(ylabel=tag)
    row[0].legend(frameon=False)
    figure.savefig(output, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs named on the command line and draw them."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.curves", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="log folder of a run")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("curves.png"),
        help="image to write (default: curves.png)",
    )
    parser.add_argument("--tag", default="val/loss", help="metric to draw (default: val/loss)")
    parser.add_argument(
        "--steps-only", action="store_true", help="leave out the panel over wall time"
    )
    options = parser.parse_args(arguments)
    try:
        draw(
            [read_curve(run, options.tag) for run in options.runs],
            options.tag,
            options.output,
            steps_only=options.steps_only,
        )
    except (ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))
    print(f"{len(options.runs)} runs drawn to {options.output}")


if __name__ == "__main__":
    main()
