"""Numbers as people read them."""

import math
from datetime import timedelta


def number(value: float | None) -> str:
    """Four decimals where that is a readable length, else three digits; "-" where there is none.

    Example:
        >>> from lightning_root.diagnostics.report.numbers import number
        >>> number(1.26823), number(0.00123456), number(12345.6), number(None)
        ('1.2682', '0.00123', '12,346', '-')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if value == int(value) and size < 1e9:
        return f"{int(value):,}"
    if 1e3 <= size < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.1 <= size < 1e3 else f"{value:#.3g}"


def whole(value: float | None) -> str:
    """Rounded, with commas; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; "-" where they are not known."""
    if seconds is None or math.isnan(seconds):
        return "-"
    return str(timedelta(seconds=round(seconds)))
