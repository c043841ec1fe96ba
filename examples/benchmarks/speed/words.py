"""Numbers and sentences that the pages of the speed benchmarks share."""

from collections.abc import Mapping, Sequence
from typing import Any

from examples.benchmarks.page import markdown_table

CLOCKS = {"cpu": "CPU time", "wall": "time passed"}


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return digits(1e3 * seconds)


def digits(value: float) -> str:
    """Three digits, without an exponent up to a million."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mebibytes(size: float) -> str:
    """Bytes as MiB, three digits; 0 below ten KiB."""
    return digits(size / (1 << 20)) if size >= 10 << 10 else "0"


def ratio(values: Sequence[float]) -> str:
    """A median and its interquartile range."""
    low, median, high = values
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def percent(share: float) -> str:
    """A share of 1 in whole percent, with a decimal below 10."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.1f} %"


def limits_table(limits: Mapping[str, Any]) -> str:
    """What the machine can do."""
    rows = [
        [f"{dtype} products, {size}x{size}", f"{rate / 1e9:.0f} GFLOP/s"]
        for dtype, sizes in limits["products"].items()
        for size, rate in sizes.items()
    ]
    rows.append(["copy, read and write together", f"{limits['bandwidth'] / 1e9:.1f} GB/s"])
    return markdown_table(["at most", "measured"], rows)


def how_timed(about: Mapping[str, Any], clock: str) -> str:
    """How times came about."""
    return (
        f"{about['rounds']} rounds in one process; in each round everything runs once, in an order "
        "drawn anew. A time is the median over the rounds. A ratio compares two times of the same "
        "round; given are the median and, in brackets, the interquartile range of the rounds' "
        f"ratios. Ratios are of {CLOCKS[clock]}"
        + (
            ", which other programs on the machine disturb least."
            if clock == "cpu"
            else ": with several threads, or on an accelerator, CPU time says little."
        )
    )


def quick_warning(about: Mapping[str, Any]) -> str:
    """A word of caution on what `--quick` wrote."""
    return "**Written by `--quick`: a trial, not a measurement.**" if about["quick"] else ""
