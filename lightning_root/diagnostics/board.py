"""Charts, texts, histograms and heat maps for the loggers that can show them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from lightning.pytorch.loggers import Logger
from numpy.typing import NDArray
from torch import Tensor

from lightning_root.diagnostics.history import History
from lightning_root.diagnostics.statistics import SKIPPED, STATISTICS, heat_map_statistics

MAX_NAMES: Final = 60  # more rows than this have only some of their names beside them
CELL: Final = 8  # pixels of a value, each way, in plain pictures
# Five colours of matplotlib's "viridis", dark to light; what lies between is interpolated.
_COLOURS: Final = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)
_MISSING: Final = np.array([200, 200, 200], dtype=np.float64)


def layout(groups: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of TensorBoard's page of custom scalars, by category and title."""
    # Statistics of stages that none of the parameter groups has on have none.
    together: dict[str, list[str]] = {}
    each: dict[str, list[str]] = {}
    for statistic in STATISTICS.values():
        if not any(statistic.is_on(group) for group in groups):
            continue
        kinds = statistic.reductions
        if statistic.chart:
            tags = statistic.tag(f"({'|'.join(kinds)})$" if len(kinds) > 1 else f"{kinds[0]}$")
            together.setdefault(statistic.chart, []).append(tags)
        if statistic.heat_map and statistic.chart:
            title, other = statistic.chart.partition(",")[0], "|".join(f"{kind}$" for kind in kinds)
            each[title] = [statistic.tag(f"(?!{other})")]
    charts = {
        "ROOT: all matrices": {**together, "skipped updates": [f"{SKIPPED}$"]},
        "ROOT: each parameter": each,
    }
    return {
        category: {title: ["Multiline", patterns] for title, patterns in found.items()}
        for category, found in charts.items()
    }


def write_layout(loggers: Sequence[Logger], groups: Sequence[Mapping[str, Any]]) -> None:
    """Arrange TensorBoard's page of custom scalars."""
    for add_custom_scalars in _writers(loggers, "add_custom_scalars"):
        add_custom_scalars(layout(groups))


def write_text(loggers: Sequence[Logger], tag: str, text: str, step: int) -> None:
    """Show text as it is, in columns that stay aligned."""
    for add_text in _writers(loggers, "add_text"):
        add_text(tag, "\n".join(f"    {line}" for line in text.splitlines()), step)


def write_histograms(loggers: Sequence[Logger], samples: Mapping[str, Tensor], step: int) -> None:
    """Show the distribution of sampled values by tag."""
    for add_histogram in _writers(loggers, "add_histogram"):
        for tag, values in samples.items():
            add_histogram(tag, values, step)


def write_heat_maps(loggers: Sequence[Logger], history: History) -> None:
    """Draw each statistic by layer and step."""
    writers = list(_writers(loggers, "add_image"))
    if not writers or not history.points:  # drawing takes longer than everything else
        return
    steps = history.column_steps()
    for statistic, values in zip(heat_map_statistics(), history.values(), strict=True):
        if statistic.stage is not None and not values.isfinite().any():
            continue
        shown = values.log10() if statistic.heat_map_log else values
        pixels = heat_map(shown, history.labels, steps, statistic.heat_map)
        for add_image in writers:
            add_image(f"root/heat_map/{statistic.name}", pixels, steps[-1], dataformats="HWC")


def _writers(loggers: Sequence[Logger], method: str) -> list[Callable[..., None]]:
    """Return methods of TensorBoard's writers, on the ranks and of the loggers that have one."""
    experiments: list[Any] = [getattr(logger, "experiment", None) for logger in loggers]
    found = [getattr(experiment, method, None) for experiment in experiments]
    return [write for write in found if callable(write)]


def heat_map(
    values: Tensor,  # (layers, steps)
    labels: Sequence[str],
    steps: Sequence[int],
    title: str,
) -> NDArray[np.uint8]:
    """Draw values by layer and step as pixels (height, width, 3), dark to light, NaN grey."""
    # Without matplotlib there are no words in the picture.
    array = values.double().numpy()
    try:
        import matplotlib.figure as figures
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ModuleNotFoundError:
        return plain_heat_map(array)
    height = 1.2 + 0.16 * max(4, min(len(labels), MAX_NAMES))
    figure = figures.Figure(figsize=(8.0, height), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)  # draws to memory: no window, no global state
    _draw_heat_map(figure, array, labels, steps, title)
    canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def plain_heat_map(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Draw one square of colour for each value: (layers, steps) -> (height, width, 3)."""
    low, high = _limits(values)
    position = np.nan_to_num((values - low) / (high - low)) * (len(_COLOURS) - 1)
    below = np.clip(position.astype(int), 0, len(_COLOURS) - 2)
    share = (position - below)[..., None]
    colours = (1.0 - share) * _COLOURS[below] + share * _COLOURS[below + 1]
    colours[~np.isfinite(values)] = _MISSING
    pixels: NDArray[np.uint8] = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
    return pixels.repeat(CELL, axis=0).repeat(CELL, axis=1)


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _draw_heat_map(
    figure: Any,
    values: NDArray[np.float64],
    labels: Sequence[str],
    steps: Sequence[int],
    title: str,
) -> None:
    low, high = _limits(values)
    axes = figure.add_subplot()
    axes.set_facecolor(_MISSING / 255)
    masked = np.ma.masked_invalid(values)
    image = axes.imshow(masked, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(image, ax=axes, pad=0.02)
    every = -(-len(labels) // MAX_NAMES)
    rows = range(0, len(labels), every)
    axes.set_yticks(rows, [labels[row] for row in rows], fontsize=7)
    columns = np.unique(np.linspace(0, len(steps) - 1, 6).round().astype(int))
    axes.set_xticks(columns, [str(steps[column]) for column in columns], fontsize=8)
    axes.set_xlabel("step", fontsize=8)
    axes.set_title(title, fontsize=10)
    # Fixed margins: a layout engine would take longer than the drawing.
    longest = max(len(label) for label in labels)
    left = min(0.45, 0.03 + 0.0072 * longest)
    figure.subplots_adjust(
        left=left,
        right=1.0,
        top=1.0 - 0.35 / figure.get_figheight(),
        bottom=0.5 / figure.get_figheight(),
    )
