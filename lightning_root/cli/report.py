"""`python -m lightning_root report` and `compare`: what the logs of runs tell, as a page."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from lightning_root.cli.output import counted, new_figure, progress, text_table, wrapped
from lightning_root.diagnostics import report
from lightning_root.diagnostics.report.comparison import explain_target, result_table
from lightning_root.diagnostics.report.run import log_files
from lightning_root.diagnostics.summary import format_block

MAX_QUIET_BYTES: Final = 10_000_000  # logs of more bytes take some seconds to read, which is said


def run_report(options: argparse.Namespace) -> int:
    """Write the page of one run and print its key numbers."""
    new_figure(1, 1)  # fails before the work if there is no matplotlib
    folder = report.find_run(options.run_dir)
    output = _checked(options.output or folder / "report")
    (run,) = _read([folder])
    page = report.report_of(run, options.smooth)
    path = report.write_page(page, output / "report.html", partial(progress, doing="drawing"))
    rows = [(card.label, f"{card.value} {card.note}".strip()) for card in page.cards]
    print(format_block(page.title, [*rows, *_page_rows(page, path)]).strip("\n"))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Write the page about several runs and print who is ahead."""
    new_figure(1, 1)  # fails before the work if there is no matplotlib
    folders = [report.find_run(folder) for folder in options.run_dirs]
    output = _checked(options.output or Path("comparison"))
    comparison = report.comparison_of(
        _read(folders),
        labels=options.label,
        metric=options.metric,
        mode=options.mode,
        steps_only=options.steps_only,
        smooth=options.smooth,
    )
    page = report.page_of(comparison)
    path = report.write_page(page, output / "comparison.html", partial(progress, doing="drawing"))
    print(f"{comparison.metric}\n\n{text_table(*result_table(comparison))}\n")
    print(wrapped(explain_target(comparison)))
    print(format_block("", _page_rows(page, path)).strip("\n"))
    return 0


def _read(folders: Sequence[Path]) -> list[report.Run]:
    size = sum(path.stat().st_size for folder in folders for path in log_files(folder))
    if size > MAX_QUIET_BYTES and sys.stderr.isatty():
        print(f"reading {size / 1e6:,.0f} MB of logs", file=sys.stderr)
    return [report.read_run(folder) for folder in progress(folders, "reading")]


def _page_rows(page: report.Page, path: Path) -> list[tuple[str, str]]:
    """Return the page's notes, path and size, as rows with labels."""
    figures, size = counted(len(page.pictures), "figure"), path.stat().st_size / 1e6
    notes = [("note", note) for note in page.notes]
    return [*notes, ("page", f"{path} ({figures}, {size:.1f} MB)")]


def _checked(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`--output` must be a folder, got the file '{folder}'")
    return folder
