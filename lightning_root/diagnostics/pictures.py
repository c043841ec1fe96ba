"""Heat maps as arrays of pixels: with matplotlib where it is installed, plain without it."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MOST_NAMES: Final = 60
"""More rows than this have only some of their names beside them."""

CELL: Final = 8
"""Pixels of a value, each way, in plain pictures."""

# Five colours of matplotlib's "viridis", dark to light; what lies between is interpolated.
_COLOURS: Final = np.array(
    [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64
)
_MISSING: Final = np.array([200, 200, 200], dtype=np.float64)


def heat_map(
    values: Tensor, labels: Sequence[str], steps: Sequence[int], title: str
) -> NDArray[np.uint8]:
    """Draw values by layer and step, dark for the least and light for the greatest.

    Args:
        values: (layers, steps); NaN is grey.
        labels: Name of each row.
        steps: Of the columns.
        title: What is shown.

    Returns:
        Pixels, (height, width, 3). Without matplotlib there are no words in the picture.

    Example:
        >>> import torch
        >>> from lightning_root.diagnostics.pictures import heat_map
        >>> heat_map(torch.rand(3, 5), ["q", "k", "v"], [0, 10, 20, 30, 40], "error").shape[2]
        3
    """
    array = values.double().numpy()
    try:
        import matplotlib.figure as figures
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ModuleNotFoundError:
        return plain(array)
    height = 1.2 + 0.16 * max(4, min(len(labels), MOST_NAMES))
    figure = figures.Figure(figsize=(8.0, height), dpi=100)
    canvas: Any = FigureCanvasAgg(figure)  # draws to memory: no window, no global state
    _draw(figure, array, labels, steps, title)
    canvas.draw()
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def plain(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """One square of colour for each value: (layers, steps) -> (height, width, 3)."""
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


def _draw(
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
    every = -(-len(labels) // MOST_NAMES)
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
