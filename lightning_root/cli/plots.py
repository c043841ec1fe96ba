"""Pictures that commands draw: matplotlib where it is installed, and what they have in common."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that belongs to no window.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`--plot` needs matplotlib; install it with `pip install 'lightning-root[plot]'`"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def check_picture(path: Path) -> None:
    """Fail before the work that a picture is of, not after it.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If the name does not end in one of its formats.
    """
    formats = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"`--plot` must end in one of {', '.join(f'.{name}' for name in sorted(formats))}, "
            f"got '{path}'"
        )


def plain_axes(axes: "Axes") -> None:
    """A light grid and no box."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
