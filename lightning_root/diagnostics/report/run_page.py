"""The page of one run."""

from datetime import timedelta
from typing import Final

from lightning_root.diagnostics.report import panels
from lightning_root.diagnostics.report.curves import (
    is_speed,
    learning_rates,
    losses,
    mode_of,
    other_tags,
)
from lightning_root.diagnostics.report.describe import (
    duration,
    label_of,
    number,
    setup_rows,
    typeset,
    whole,
)
from lightning_root.diagnostics.report.drawing import Line, Panel
from lightning_root.diagnostics.report.page import (
    Card,
    Definitions,
    Page,
    Part,
    Section,
    Table,
    Verbatim,
    other_curves,
    picture_of,
)
from lightning_root.diagnostics.report.run import Run
from lightning_root.diagnostics.statistics import SKIPPED, STATISTICS

MAX_LINES: Final = 60  # of a table that is shown without being asked for
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
    others = {tag: [Line("", run.scalars[tag])] for tag in other_tags(run.scalars)}
    texts = [
        Verbatim(f"{tag}, step {whole(found[-1][0])}", found[-1][1])
        for tag, found in run.texts.items()
        if tag not in _OWN_TEXTS
    ]
    sections = [
        Section("Training", _training(run, smooth)),
        Section("Orthogonalization", _orthogonalization(run)),
        Section("Outliers", picture_of("outliers", panels.outliers(run), common_legend=True)),
        Section("Updates", picture_of("updates", panels.updates(run))),
        Section("Layers", [*panels.heat_maps(run), *panels.worst_layers(run)]),
        Section("Parameters", _partition(run)),
        Section("Other curves", other_curves(others)),
        Section("Texts in the log", texts),
        Section("Set-up", _set_up(run)),
    ]
    return Page(
        kind="Training run",
        title=label_of(run),
        subtitle=_subtitle(run),
        cards=_cards(run),
        sections=[section for section in sections if section.parts],
        notes=run.notes,
    )


def _cards(run: Run) -> list[Card]:
    """Return the key numbers, as far as they are logged."""
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
    for statistic in STATISTICS.values():
        tag = statistic.tag("mean")
        if statistic.card and tag in run.scalars:
            cards.append(Card(statistic.title, number(run.scalars[tag].last.value), "last mean"))
    if SKIPPED in run.scalars:
        total = float(run.scalars[SKIPPED].values.sum())
        cards.append(Card("Skipped updates", number(total), "not finite"))
    return cards


def _subtitle(run: Run) -> str:
    """Return where and when it ran."""
    words = [run.name]
    if run.started is not None:
        words.append(run.started.strftime("%Y-%m-%d %H:%M"))
        if run.seconds is not None:
            ended = run.started + timedelta(seconds=run.seconds)
            same_day = ended.date() == run.started.date()
            words[-1] += ended.strftime(" to %H:%M" if same_day else " to %Y-%m-%d %H:%M")
    return " · ".join(words)


def _training(run: Run, smooth: float | None) -> list[Part]:
    training, validation = (losses(run.scalars, s)[:1] for s in ("training", "validation"))
    lines = [Line(tag, run.scalars[tag], 0, smooth) for tag in training]
    lines += [Line(tag, run.scalars[tag], 1) for tag in validation]
    shown = []
    if lines:
        about = "Loss of training and validation" if validation else "Loss of training"
        about += "; faint: as logged, before smoothing." if training and smooth != 0 else "."
        shown.append(Panel("Loss", lines, about, width=2.0))
    found = learning_rates(run.scalars)
    if found:
        named = [
            Line(tag if len(found) > 1 else "", series, place)
            for place, (tag, series) in enumerate(found.items())
        ]
        shown.append(Panel("Learning rate", named, f"Learning rate of {'; '.join(found)}."))
    return picture_of("training", shown)


def _orthogonalization(run: Run) -> list[Part]:
    parts = picture_of("orthogonalization", panels.orthogonalization(run))
    entries = panels.coefficients_in_use(run)
    if entries:
        header = ["matrices", "from step", "T", "source", "range of p_T"]
        rows = [
            [
                panels.shape_text(entry.shape),
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
        parts.append(Table(typeset(caption), header, rows))
    return [*parts, *picture_of("refits", panels.refits(run), min_columns=2)]


def _partition(run: Run) -> list[Part]:
    if not run.partition:
        return []
    unfolded = run.partition.count("\n") < MAX_LINES
    return [Verbatim("Which parameter gets which rule, and why", run.partition, unfolded)]


def _set_up(run: Run) -> list[Part]:
    rows = setup_rows(run)
    parts: list[Part] = [Definitions(rows)] if rows else []
    if run.config_text:
        parts.append(Verbatim("The whole configuration", run.config_text))
    return parts
