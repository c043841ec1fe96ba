"""Output of commands: tables, numbers of a readable length, JSON, progress, pictures."""

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightning_root.diagnostics.report.drawing import new_figure as new_figure
from lightning_root.diagnostics.report.drawing import plain_axes as plain_axes

Item = TypeVar("Item")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out left-aligned columns under a ruled header."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def error_text(value: float | None) -> str:
    """Format an error with two significant digits and four decimals at least; "-" for None."""
    if value is None or math.isnan(value):
        return "-"
    if not 1e-12 < abs(value) < 10:
        return f"{value:.3g}"
    return f"{value:.{max(4, 1 - math.floor(math.log10(abs(value))))}f}"


def range_text(bounds: tuple[float, float]) -> str:
    """Format a range, as "0 to 1.15"."""
    return " to ".join(f"{bound:.3g}" for bound in bounds)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Format a number of things, as "1 step" or "2 steps"."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def print_json(values: Any) -> None:
    """Print as JSON, with null for infinity and NaN."""
    finite = json.loads(json.dumps(values), parse_constant=lambda _: None)
    text = json.dumps(finite, indent=1)
    # Lists of numbers take one line; strings hold no line breaks, so they stay as they are.
    print(re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text))


def wrapped(text: str) -> str:
    """Break the text into lines of at most 100 columns, all but the first indented."""
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False)


def render(name: str, **values: Any) -> str:
    """Return what a command prints: a template of the folder `texts`, filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).with_name("texts"))
    texts = Environment(
        loader=folder, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    texts.filters["wrapped"] = wrapped
    known = {each.__name__: each for each in (counted, error_text, text_table, wrapped)}
    return texts.get_template(f"{name}.txt").render(known | values).rstrip("\n")


def progress(items: Sequence[Item], doing: str) -> Iterator[Item]:
    """Yield the items, with a bar on stderr if they are several and it is a terminal."""
    if len(items) < 2 or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm  # type: ignore[import-untyped]  # Lightning requires it

    yield from tqdm(items, desc=doing, file=sys.stderr, leave=False)


def check_picture(path: Path) -> None:
    """Raise, before the work, if matplotlib is missing or does not know the file's format."""
    formats = new_figure(1, 1).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"`--plot` must end in one of {', '.join(f'.{name}' for name in sorted(formats))}, "
            f"got '{path}'"
        )
