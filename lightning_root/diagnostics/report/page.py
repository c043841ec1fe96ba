"""One HTML page that needs nothing but itself: text, tables, and pictures as data."""

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from itertools import count
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final, TypeAlias

from lightning_root.diagnostics.report.drawing import draw_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """A figure with its caption.

    Args:
        name: Of the PNG file, without its ending.
        caption: What is shown, and what its definition is.
        height: In inches.
        draw: Draws on an empty figure.
        is_map: Its colours are values, so that a dark page must leave them as they are.
    """

    name: str
    caption: str
    height: float
    draw: Callable[["Figure"], None]
    is_map: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its caption.

    Args:
        caption: What the numbers are.
        header: One for each column.
        rows: Of cells, at least one.
        strong: (row, column) of cells to point out.
        colours: One for each row, as in the pictures; empty for none.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[tuple[int, int]] = frozenset()
    colours: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """Names and what they stand for, one row each."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Verbatim:
    """Text as it is, below a line that unfolds it."""

    title: str
    text: str
    unfolded: bool = False


@dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


Part: TypeAlias = Picture | Table | Facts | Verbatim | Paragraph


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Card:
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
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def pictures(self) -> list[Picture]:
        """All of them, in their order."""
        parts = [part for section in self.sections for part in section.parts]
        return [part for part in parts if isinstance(part, Picture)]


def write_page(
    page: Page,
    path: Path,
    watched: Callable[[Sequence[Picture]], Iterable[Picture]] = iter,
) -> Path:
    """Draw the pictures, as PNG files beside the page, and write the page.

    Args:
        page: What to write.
        path: The HTML file; its folder is made.
        watched: Goes through the pictures, and may show how far it is.

    Returns:
        `path`.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        OSError: If the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for picture in watched(page.pictures):
        drawn[picture.name] = draw_png(picture.height, picture.draw)
        path.with_name(f"{picture.name}.png").write_bytes(drawn[picture.name])
    path.write_text(html_of(page, drawn), encoding="utf-8")
    return path


def html_of(page: Page, drawn: dict[str, bytes]) -> str:
    """The page as HTML.

    Args:
        page: What to write; all its text is escaped.
        drawn: PNG files by the name of their pictures.
    """
    writer = _Writer(drawn)
    notes = "".join(f"<li>{escape(note)}</li>" for note in page.notes)
    return Template((_HERE / "page.html").read_text("utf-8")).substitute(
        style=(_HERE / "page.css").read_text("utf-8"),
        title=escape(page.title),
        kind=escape(page.kind),
        subtitle=escape(page.subtitle),
        cards="".join(map(_card, page.cards)),
        notes=f'<ul class="notes">{notes}</ul>' if notes else "",
        sections="".join(map(writer.section, page.sections)),
        date=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )


class _Writer:
    """Numbers figures and tables while it writes them."""

    def __init__(self, drawn: dict[str, bytes]) -> None:
        self._drawn = drawn
        self._figures, self._tables = count(1), count(1)

    def section(self, section: Section) -> str:
        body = "".join(map(self._part, section.parts))
        return f"<section><h2>{escape(section.title)}</h2>{body}</section>\n"

    def _part(self, part: Part) -> str:
        match part:
            case Picture():
                return self._picture(part)
            case Table():
                return self._table(part)
            case Facts():
                rows = "".join(
                    f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
                    for name, text in part.rows
                )
                return f"<dl>{rows}</dl>"
            case Verbatim():
                return (
                    f"<details{' open' if part.unfolded else ''}>"
                    f"<summary>{escape(part.title)}</summary><pre>{escape(part.text)}</pre></details>"
                )
            case Paragraph():
                return f"<p>{escape(part.text)}</p>"

    def _picture(self, picture: Picture) -> str:
        data = base64.b64encode(self._drawn[picture.name]).decode("ascii")
        kind = "map" if picture.is_map else "lines"
        return (
            f'<figure><img class="{kind}" alt="{escape(picture.caption)}" '
            f'src="data:image/png;base64,{data}">'
            f"<figcaption><b>Figure {next(self._figures)}.</b> {escape(picture.caption)}"
            "</figcaption></figure>"
        )

    def _table(self, table: Table) -> str:
        columns = list(zip(*table.rows, strict=True))
        kinds = ["", *(_alignment(column) for column in columns[1:])]
        header = "".join(
            f"<th{kind}>{escape(name)}</th>" for name, kind in zip(table.header, kinds, strict=True)
        )
        rows = "".join(
            f"<tr>{''.join(self._cell(table, r, c, kinds[c]) for c in range(len(row)))}</tr>"
            for r, row in enumerate(table.rows)
        )
        return (
            f'<div class="table"><table><caption><b>Table {next(self._tables)}.</b> '
            f"{escape(table.caption)}</caption><thead><tr>{header}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )

    def _cell(self, table: Table, row: int, column: int, kind: str) -> str:
        text = escape(table.rows[row][column])
        if (row, column) in table.strong:
            text = f"<strong>{text}</strong>"
        if column == 0 and table.colours:
            text = f'<i class="lines" style="background:{table.colours[row]}"></i>{text}'
        return f"<td{kind}>{text}</td>"


def _alignment(column: Sequence[str]) -> str:
    """To the right where all cells are numbers or empty."""
    digits = set("0123456789.,:-+e%x ")
    numbers = all(set(cell) <= digits or cell in ("nan", "inf") for cell in column)
    return ' class="number"' if numbers else ""


def _card(card: Card) -> str:
    note = f"<small>{escape(card.note)}</small>" if card.note else ""
    return f"<div><span>{escape(card.label)}</span><b>{escape(card.value)}</b>{note}</div>"
