"""One HTML page that needs nothing but itself: text, tables, and pictures as data."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from html import escape
from itertools import count
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final, TypeAlias

from lightning_root.diagnostics.report.drawing import Line, Panel, draw_panels, draw_png, height_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_OTHERS: Final = 16  # curves without a place of their own that are drawn
_HERE: Final = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """A figure with its caption."""

    name: str  # of the PNG file, without its ending
    caption: str
    height: float  # in inches
    draw: Callable[["Figure"], None]
    is_map: bool = False  # its colours are values, which a dark page must leave as they are


@dataclass(frozen=True)
class Table:
    """A table with its caption."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # at least one
    strong: frozenset[tuple[int, int]] = frozenset()  # (row, column) of cells to point out
    colours: Sequence[str] = ()  # one for each row, as in the pictures; empty for none


@dataclass(frozen=True)
class Definitions:
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


Part: TypeAlias = Picture | Table | Definitions | Verbatim | Paragraph


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


def picture_of(
    name: str,
    panels: Sequence[Panel],
    intro: str = "",
    *,
    min_columns: int = 1,
    common_legend: bool = False,
) -> list[Part]:
    """Return one picture of some panels, with their definitions as its caption, or nothing."""
    if not panels:
        return []
    titled, about = _add_letters(panels)
    height = height_of(panels, min_columns) + (0.3 if common_legend else 0.0)

    def draw(figure: "Figure") -> None:
        draw_panels(figure, titled, min_columns=min_columns, common_legend=common_legend)

    return [Picture(name, f"{intro} {about}".strip(), height, draw)]


def other_curves(
    curves: Mapping[str, Sequence[Line]], *, common_legend: bool = False
) -> list[Part]:
    """Return a picture of curves that only their tags explain, and what was left out."""
    panels = [Panel(tag, lines) for tag, lines in curves.items()]
    intro = "Other metrics, by their tags."
    parts = picture_of(
        "others", panels[:MAX_OTHERS], intro, min_columns=3, common_legend=common_legend
    )
    left = [panel.title for panel in panels[MAX_OTHERS:]]
    if left:
        named = ", ".join(left[:MAX_OTHERS]) + (", ..." if len(left) > MAX_OTHERS else "")
        parts.append(Paragraph(f"{len(left):,} more curves are left out: {named}."))
    return parts


def _add_letters(panels: Sequence[Panel]) -> tuple[list[Panel], str]:
    """Return panels with letters before their titles if they need them, and the caption."""
    if len(panels) == 1 or not any(panel.about for panel in panels):
        return list(panels), panels[0].about
    letters = [chr(ord("a") + place) for place in range(len(panels))]
    titled = [replace(p, title=f"({x}) {p.title}") for x, p in zip(letters, panels, strict=True)]
    about = [f"({x}) {p.about}" for x, p in zip(letters, panels, strict=True) if p.about]
    return titled, " ".join(about)


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
    path.write_text(_html(page, drawn), encoding="utf-8")
    return path


def _html(page: Page, drawn: Mapping[str, bytes]) -> str:
    """Return the page as HTML, all its text escaped, with PNG files by the name of pictures."""
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

    def __init__(self, drawn: Mapping[str, bytes]) -> None:
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
            case Definitions():
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
    """Align to the right where all cells are numbers or empty."""
    digits = set("0123456789.,:-+e%x ")
    numbers = all(set(cell) <= digits or cell in ("nan", "inf") for cell in column)
    return ' class="number"' if numbers else ""


def _card(card: Card) -> str:
    note = f"<small>{escape(card.note)}</small>" if card.note else ""
    return f"<div><span>{escape(card.label)}</span><b>{escape(card.value)}</b>{note}</div>"
