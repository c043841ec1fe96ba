"""Shapes as text, the smaller size first: "768x3072" in files, options and tables."""

from lightning_root.coefficients.schedules import Shape


def shape_text(shape: Shape) -> str:
    """(768, 3072) as "768x3072"."""
    return f"{shape[0]}x{shape[1]}"


def shape_of(text: str) -> Shape:
    """What `shape_text` wrote.

    Raises:
        ValueError: If it is not two whole numbers.
    """
    m, n = (int(size) for size in text.split("x"))
    return m, n
