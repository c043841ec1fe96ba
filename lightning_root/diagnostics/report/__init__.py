"""Pages about runs, from their logs; Jinja2, matplotlib, TensorBoard are imported when used."""

from lightning_root.diagnostics.report.comparison import Comparison, comparison_of, page_of
from lightning_root.diagnostics.report.page import Page, write_page
from lightning_root.diagnostics.report.run import Run, find_run, read_run
from lightning_root.diagnostics.report.run_page import report_of

__all__ = [
    "Comparison",
    "Page",
    "Run",
    "comparison_of",
    "find_run",
    "page_of",
    "read_run",
    "report_of",
    "write_page",
]
