"""`autoprog-diffusion report RUN_DIR [RUN_DIR ...]`: the report of one or several runs, as one page of HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from autoprog_diffusion.command_line import parse
from autoprog_diffusion.reporting import Run, read_run, write_page


@dataclass(frozen=True)
class Arguments:
    """Write the report of one run, or of several side by side, as one page of HTML that needs no network.

    The newest complete checkpoint stands for a run that was cut off.
    """

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Output folders of runs."""
    output: Path | None = None
    """File of the page [report.html in the first folder]."""
    json: bool = False
    """Print JSON instead: the page, and the numbers of every run."""


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
    args = parse(Arguments, argv, program="autoprog-diffusion report")
    page = write_page(args.run_dirs, args.output)
    if args.json:
        runs = [numbers_of(read_run(folder)) for folder in args.run_dirs]
        print(json.dumps({"page": str(page), "runs": runs}, indent=1))
    else:
        print(page)
    return 0


def numbers_of(run: Run) -> dict[str, Any]:
    """What a machine may want to know of a run, in JSON types.

    Args:
        run: As it was read.

    Returns:
        Times are in seconds, FLOPs of one process; the best held-out loss is None where none was evaluated.
    """
    best = None if run.held_out is None else run.held_out.best
    return {
        "folder": str(run.folder),
        "program": run.script,
        "model": run.model,
        "ended": run.ended,
        "steps_done": run.steps_done,
        "steps": run.steps,
        "seconds": run.total_seconds,
        "cpu_seconds": run.total_cpu_seconds,
        "flops": run.total_flops,
        "best_held_out": None if best is None else {"step": best[0], "loss": best[1]},
    }
