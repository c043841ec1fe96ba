"""Pages about runs, from their logs: one run, or several side by side.

Nothing here is imported by training. Pictures need matplotlib, event files TensorBoard's reader;
both are imported when they are used.
"""

from lightning_root.diagnostics.report.comparison import Comparison as Comparison
from lightning_root.diagnostics.report.comparison import comparison_of as comparison_of
from lightning_root.diagnostics.report.comparison_page import page_of as page_of
from lightning_root.diagnostics.report.page import Page as Page
from lightning_root.diagnostics.report.page import write_page as write_page
from lightning_root.diagnostics.report.report import report_of as report_of
from lightning_root.diagnostics.report.run import Run as Run
from lightning_root.diagnostics.report.run import find_run as find_run
from lightning_root.diagnostics.report.run import read_run as read_run

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
