"""`autoprog-diffusion report RUN_DIR [RUN_DIR ...]`: the report of one or several runs, as one page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from autoprog_diffusion.reporting import write_page


@dataclass(frozen=True)
class ReportArguments:
    """Write the report of one run, or of several side by side, as one page of HTML that needs no network.

    The newest complete checkpoint stands for a run that was cut off.
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Output folders of runs."""
    output: Path | None = None
    """File of the page [report.html in the first folder]."""


def run(argv: Sequence[str]) -> int:
    """Write the page, and print its path.

    Args:
        argv: Words after `report`.

    Returns:
        0, the exit code.

    Raises:
        ReportError: A folder holds no run, a file of it is damaged, or the page cannot be written.
        SystemExit: The words cannot be read; its code is 2.
    """
    args = tyro.cli(ReportArguments, args=list(argv), prog="autoprog-diffusion report")
    print(write_page(args.run_dirs, args.output))
    return 0
