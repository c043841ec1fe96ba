"""Pictures that commands draw: what is checked before the work that they are of."""

from pathlib import Path

from lightning_root.diagnostics.report.drawing import new_figure as new_figure
from lightning_root.diagnostics.report.drawing import plain_axes as plain_axes


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
