"""The page of one run."""

from datetime import datetime, timedelta
from typing import Final

from lightning_root.diagnostics.report.coefficients import in_use, shape_text
from lightning_root.diagnostics.report.describe import label_of, set_up
from lightning_root.diagnostics.report.layers import heat_maps, worst_layers
from lightning_root.diagnostics.report.numbers import duration, number, whole
from lightning_root.diagnostics.report.page import (
    Card,
    Facts,
    Page,
    Part,
    Section,
    Table,
    Verbatim,
)
from lightning_root.diagnostics.report.panel import Line, Panel
from lightning_root.diagnostics.report.pictures import other_curves, picture_of
from lightning_root.diagnostics.report.root_panels import (
    orthogonalization,
    outliers,
    refits,
    updates,
)
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.report.tags import (
    is_speed,
    losses,
    mode_of,
    others,
    rates,
)
from lightning_root.diagnostics.report.typography import printed

MOST_LINES: Final = 60
"""Of a table that is shown without being asked for."""

_OWN_TEXTS: Final = ("root/partition", "root/coefficients")


def report_of(run: Run, smooth: float | None = None) -> Page:
    r"""Everything that the logs of a run tell, as a page.

    Args:
        run: From `read_run`.
        smooth: Weight of the past in the average that is drawn over the training loss, in [0, 1).
            Default: by the number of points.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_root.diagnostics.report import read_run, report_of
        >>> with TemporaryDirectory() as folder:
        ...     csv = Path(folder, "metrics.csv")
        ...     _ = csv.write_text("step,train_loss,val_loss\n9,2.5,\n19,1.5,1.75\n")
        ...     page = report_of(read_run(Path(folder)))
        >>> [(card.label, card.value) for card in page.cards]
        [('Best val_loss', '1.7500'), ('Last train_loss', '1.5000'), ('Last step', '19')]
    """
    sections = [
        Section("Training", _training(run, smooth)),
        Section("Orthogonalization", _orthogonalization(run)),
        Section("Outliers", picture_of("outliers", outliers(run), common_legend=True)),
        Section("Updates", picture_of("updates", updates(run))),
        Section("Layers", [*heat_maps(run), *worst_layers(run)]),
        Section("Parameters", _partition(run)),
        Section("Other curves", _others(run)),
        Section("Texts in the log", _texts(run)),
        Section("Set-up", _set_up(run)),
    ]
    return Page(
        kind="Training run",
        title=label_of(run),
        subtitle=subtitle_of(run),
        cards=cards_of(run),
        sections=[section for section in sections if section.parts],
        notes=run.notes,
    )


def cards_of(run: Run) -> list[Card]:
    """The key numbers, as far as they are logged."""
    cards = []
    for tag in losses(run.scalars, "validation")[:1]:
        series = run.scalars[tag]
        best = series.best(mode_of(tag))
        if best is not None:
            cards.append(Card(f"Best {tag}", number(best.value), f"at step {whole(best.step)}"))
        if best is None or best.step != series.last.step:
            cards.append(Card(f"Last {tag}", number(series.last.value)))
    for tag in losses(run.scalars, "training")[:1]:
        cards.append(Card(f"Last {tag}", number(run.scalars[tag].last.value)))
    cards.append(Card("Last step", whole(run.last_step)))
    if run.seconds is not None:
        cards.append(Card("Time", duration(run.seconds), "to the last point"))
    cards += [
        Card(tag, number(run.scalars[tag].last.value), "last value")
        for tag in [tag for tag in run.scalars if is_speed(tag)][:2]
    ]
    return [*cards, *_root_cards(run)]


def _root_cards(run: Run) -> list[Card]:
    cards = []
    if "root/orth_error/mean" in run.scalars:
        value = run.scalars["root/orth_error/mean"].last.value
        cards.append(Card("Orthogonalization error", number(value), "last mean"))
    if "root/skipped" in run.scalars:
        total = float(run.scalars["root/skipped"].values.sum())
        cards.append(Card("Skipped updates", number(total), "not finite"))
    return cards


def subtitle_of(run: Run) -> str:
    """Where and when it ran."""
    words = [run.name]
    if run.started is not None:
        words.append(run.started.strftime("%Y-%m-%d %H:%M"))
        ended = _ended(run)
        if ended is not None:
            words[-1] += ended.strftime(" to %H:%M" if _same_day(run) else " to %Y-%m-%d %H:%M")
    return " · ".join(words)


def _ended(run: Run) -> datetime | None:
    if run.started is None or run.seconds is None:
        return None
    return run.started + timedelta(seconds=run.seconds)


def _same_day(run: Run) -> bool:
    ended = _ended(run)
    return run.started is not None and ended is not None and run.started.date() == ended.date()


def _training(run: Run, smooth: float | None) -> list[Part]:
    training, validation = (losses(run.scalars, s)[:1] for s in ("training", "validation"))
    lines = [Line(tag, run.scalars[tag], 0, smooth) for tag in training]
    lines += [Line(tag, run.scalars[tag], 1) for tag in validation]
    panels = []
    if lines:
        about = "Loss of training and validation" if validation else "Loss of training"
        about += "; faint: as logged, before smoothing." if training and smooth != 0 else "."
        panels.append(Panel("Loss", lines, about, width=2.0))
    found = rates(run.scalars)
    if found:
        named = [
            Line(tag if len(found) > 1 else "", series, place)
            for place, (tag, series) in enumerate(found.items())
        ]
        panels.append(Panel("Learning rate", named, f"Learning rate of {'; '.join(found)}."))
    return picture_of("training", panels)


def _orthogonalization(run: Run) -> list[Part]:
    parts = picture_of("orthogonalization", orthogonalization(run))
    entries = in_use(run)
    if entries:
        header = ["matrices", "from step", "T", "source", "range of p_T"]
        rows = [
            [
                shape_text(entry.shape),
                whole(entry.step),
                str(entry.steps),
                entry.source,
                f"{entry.low:.3g} to {entry.high:.3g}",
            ]
            for entry in entries
        ]
        caption = (
            "Coefficients in use: T steps of Newton-Schulz send a singular value sigma in [0, 1] "
            "to p_T(sigma)."
        )
        if any(entry.expected is not None for entry in entries):
            header.append("expected error")
            for row, entry in zip(rows, entries, strict=True):
                row.append(number(entry.expected))
            caption += (
                " Expected: the mean of (p_T(sigma) - 1)^2 on a model of momentum in training."
            )
        parts.append(Table(printed(caption), header, rows))
    return [*parts, *picture_of("refits", refits(run), least_columns=2)]


def _partition(run: Run) -> list[Part]:
    if not run.partition:
        return []
    unfolded = run.partition.count("\n") < MOST_LINES
    return [Verbatim("Which parameter gets which rule, and why", run.partition, unfolded)]


def _others(run: Run) -> list[Part]:
    return other_curves({tag: [Line("", run.scalars[tag])] for tag in others(run.scalars)})


def _texts(run: Run) -> list[Part]:
    return [
        Verbatim(f"{tag}, step {whole(found[-1][0])}", found[-1][1])
        for tag, found in run.texts.items()
        if tag not in _OWN_TEXTS
    ]


def _set_up(run: Run) -> list[Part]:
    rows = set_up(run)
    parts: list[Part] = [Facts(rows)] if rows else []
    if run.config_text:
        parts.append(Verbatim("The whole configuration", run.config_text))
    return parts
