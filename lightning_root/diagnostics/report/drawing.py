"""matplotlib where it is installed, and what all pictures have in common."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Of curves, in turn; told apart by colour-blind eyes (Okabe and Ito)."""

DASHES: Final = ("-", "--", ":", "-.")
"""Of curves beyond the colours."""

WIDTH: Final = 10.0
"""Inches, of every picture of a page."""

RESOLUTION: Final = 180
"""Dots per inch."""

_STYLE: Final[Any] = {
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8.5,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "legend.fontsize": 8,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.handlelength": 1.6,
}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that belongs to no window.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "drawing needs matplotlib; install it with `pip install 'lightning-root[plot]'`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def plain_axes(axes: "Axes") -> None:
    """A light grid and no box."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def log_numbers(axis: "Axis", values: NDArray[np.float64]) -> None:
    """Numbers like 0.02 on a logarithmic axis, more where it spans less than two decades.

    Args:
        axis: Of positive values.
        values: What is drawn, at least one.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    narrow = values.max() < 100 * values.min()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_png(height: float, draw: Callable[["Figure"], None]) -> bytes:
    """A picture of a page, as the bytes of a PNG file.

    Args:
        height: In inches.
        draw: Draws on the empty figure.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    figure = new_figure(WIDTH, height)
    from matplotlib import rc_context

    file = io.BytesIO()
    with rc_context(_STYLE):
        draw(figure)
        figure.savefig(file, format="png", dpi=RESOLUTION, pil_kwargs={"optimize": True})
    return file.getvalue()


def colour(place: int) -> str:
    """Colour of the curve at this place."""
    return COLOURS[place % len(COLOURS)]


def dashes(place: int) -> str:
    """Line style of the curve at this place."""
    return DASHES[place // len(COLOURS) % len(DASHES)]
