"""The report of one or several runs: reads their output folders alone, and writes one page of HTML."""

from .errors import ReportError
from .page import write_page
from .run_folder import Run, read_run


__all__ = ["ReportError", "Run", "read_run", "write_page"]
