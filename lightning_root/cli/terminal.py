"""What commands print: plain tables, numbers of a readable length, JSON, progress."""

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

_GAP = "  "

Item = TypeVar("Item")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns under a ruled header; numbers below 10 then align at the point."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def small(value: float | None) -> str:
    """An error: at least two significant digits and four decimals; "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if not 1e-12 < abs(value) < 10:
        return f"{value:.3g}"
    return f"{value:.{max(4, 1 - math.floor(math.log10(abs(value))))}f}"


def interval(bounds: tuple[float, float]) -> str:
    """A range, as "0 to 1.15"."""
    return " to ".join(f"{bound:.3g}" for bound in bounds)


def print_json(values: Any) -> None:
    """Print as JSON; what JSON has no number for, an infinity for example, becomes null."""
    text = json.dumps(_plain(values), indent=1)
    # Lists of numbers take one line; strings hold no line breaks, so they stay as they are.
    print(re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text))


def wrapped(text: str) -> str:
    """The text in lines of at most 100 columns, all but the first indented."""
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False)


def progress(items: Sequence[Item], doing: str) -> Iterator[Item]:
    """The items, with a bar on stderr if they are several and somebody is watching."""
    if len(items) < 2 or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm  # type: ignore[import-untyped]  # Lightning requires it

    yield from tqdm(items, desc=doing, file=sys.stderr, leave=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
