"""One HTML page that needs nothing but itself: text, tables, and pictures as data."""

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from lightning_root.diagnostics.report.drawing import Picture, draw_png

_SYMBOLS: Final = {
    "sigma": "\N{GREEK SMALL LETTER SIGMA}",
    " - ": " \N{MINUS SIGN} ",
    "(N, -q": "(N, \N{MINUS SIGN}q",
    "^2": "\N{SUPERSCRIPT TWO}",
    "^4": "\N{SUPERSCRIPT FOUR}",
    "||": "\N{DOUBLE VERTICAL LINE}",
    " x ": " \N{MULTIPLICATION SIGN} ",
}


def typeset(text: str) -> str:
    """Replace plain text by minus signs, powers and norms, in our own sentences alone."""
    for plain, symbol in _SYMBOLS.items():
        text = text.replace(plain, symbol)
    return text


def number(value: float | None) -> str:
    """Format with four decimals where that is readable, else three digits; "-" for None."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    size = abs(value)
    if size < 1e9 and (size >= 1e3 or value == int(value)):
        return f"{round(value):,}"
    return f"{value:.4f}" if 0.1 <= size < 1e3 else f"{value:#.3g}"


def whole(value: float | None) -> str:
    """Format rounded, with commas; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Format as hours, minutes and seconds; "-" where they are not known."""
    if seconds is None or math.isnan(seconds):
        return "-"
    return str(timedelta(seconds=round(seconds)))


class Table(NamedTuple):
    """A table with its caption."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # at least one
    strong: Sequence[int] = ()  # rows whose second cell is to be pointed out
    colours: Sequence[str] = ()  # one for each row, as in the pictures; empty for none

    @property
    def numeric(self) -> list[int]:
        """Columns beside the first whose cells are numbers or empty, which stand to the right."""
        digits = set("0123456789.,:-+e%x ")
        return [
            place
            for place, column in enumerate(zip(*self.rows, strict=True))
            if place and all(set(cell) <= digits or cell in ("nan", "inf") for cell in column)
        ]


class Verbatim(NamedTuple):
    """Text as it is, below a line that unfolds it."""

    title: str
    text: str
    unfolded: bool = False


# A text is a paragraph, a mapping a list of names and what they stand for
Part: TypeAlias = Picture | Table | Verbatim | Mapping[str, str] | str


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


class Card(NamedTuple):
    """A key number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """Everything on a page, in its order."""

    kind: str
    title: str
    subtitle: str
    cards: Sequence[Card]
    sections: Sequence[Section]
    notes: Sequence[str] = ()

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in their order."""
        parts = [part for section in self.sections for part in section.parts]
        return [part for part in parts if isinstance(part, Picture)]


def write_page(
    page: Page,
    path: Path,  # of the HTML file; its folder is made, and the path returned
    watched: Callable[[Sequence[Picture]], Iterable[Picture]] = iter,  # may show how far it is
) -> Path:
    """Draw the pictures, as PNG files beside the page, and write the page.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        OSError: If the folder cannot be written to.
    """
    from jinja2 import Environment, FileSystemLoader

    path.parent.mkdir(parents=True, exist_ok=True)
    images = {}
    for picture in watched(page.pictures):
        png = draw_png(picture.height, picture.draw)
        path.with_name(f"{picture.name}.png").write_bytes(png)
        images[picture.name] = base64.b64encode(png).decode("ascii")
    folder = FileSystemLoader(Path(__file__).with_name("templates"))
    templates = Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    date = datetime.now().strftime("%Y-%m-%d %H:%M")
    html = templates.get_template("page.html").render(page=page, images=images, date=date)
    path.write_text(html, encoding="utf-8")
    return path
