"""Pictures of panels, with captions that say what each of them shows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from lightning_root.diagnostics.report.page import Paragraph, Part, Picture
from lightning_root.diagnostics.report.panel import Line, Panel, draw_panels, height_of

MOST_OTHERS: Final = 16
"""Curves without a place of their own that are drawn."""


def picture_of(
    name: str,
    panels: Sequence[Panel],
    intro: str = "",
    *,
    least_columns: int = 1,
    common_legend: bool = False,
) -> list[Part]:
    """One picture of some panels, or none if there are none.

    Args:
        name: Of its file.
        panels: Each with its definition, which goes into the caption.
        intro: How the caption begins.
        least_columns: Places of a row, even if there are fewer panels.
        common_legend: Name curves once for all panels, below.
    """
    if not panels:
        return []
    titled, about = _lettered(panels)
    height = height_of(panels, least_columns) + (0.3 if common_legend else 0.0)
    return [
        Picture(
            name,
            f"{intro} {about}".strip(),
            height,
            lambda figure: draw_panels(
                figure, titled, least_columns=least_columns, common_legend=common_legend
            ),
        )
    ]


def other_curves(
    curves: Mapping[str, Sequence[Line]], *, common_legend: bool = False
) -> list[Part]:
    """Curves that only their tags explain, and what was left out.

    Args:
        curves: By tag, the most telling first.
        common_legend: Name curves once for all panels, below.
    """
    panels = [Panel(tag, lines) for tag, lines in curves.items()]
    intro = "Other metrics, by their tags."
    parts = picture_of(
        "others", panels[:MOST_OTHERS], intro, least_columns=3, common_legend=common_legend
    )
    left = [panel.title for panel in panels[MOST_OTHERS:]]
    if left:
        named = ", ".join(left[:MOST_OTHERS]) + (", ..." if len(left) > MOST_OTHERS else "")
        parts.append(Paragraph(f"{len(left):,} more curves are left out: {named}."))
    return parts


def _lettered(panels: Sequence[Panel]) -> tuple[list[Panel], str]:
    """Panels with letters before their titles if they need them, and what the caption says."""
    if len(panels) == 1 or not any(panel.about for panel in panels):
        return list(panels), panels[0].about
    letters = [chr(ord("a") + place) for place in range(len(panels))]
    titled = [replace(p, title=f"({x}) {p.title}") for x, p in zip(letters, panels, strict=True)]
    about = [f"({x}) {p.about}" for x, p in zip(letters, panels, strict=True) if p.about]
    return titled, " ".join(about)
