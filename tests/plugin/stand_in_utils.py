"""Stands in for Diffusers' `examples/test_examples_utils.py`: scripts run in forks, so that a start costs no imports.

A copy of this file is imported by their tests. It has the names that they import from theirs.
"""

from __future__ import annotations

import importlib
import logging
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path

import torch


for _name in ("accelerate", "datasets", "peft", "transformers", "diffusers", "diffusers.training_utils"):
    importlib.import_module(_name)


class SubprocessCallException(Exception):
    """A script failed; the message is what it printed."""


def run_command(command: list[str], return_stdout: bool = False) -> str | None:
    """Be `accelerate launch script arguments` in one process, in a fork of this one."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        child = os.fork()
        if child == 0:
            os._exit(_run(command, log))
        _, status = os.waitpid(child, 0)
        printed = log.read_text(encoding="utf-8", errors="replace")
    if status:
        raise SubprocessCallException(f"Command `{' '.join(command)}` failed with the following error:\n\n{printed}")
    return printed if return_stdout else None


def _run(command: list[str], log: Path) -> int:
    """Run a script to its end; returns its exit status."""
    sys.stdout = sys.stderr = log.open("w", encoding="utf-8")
    logging.getLogger().handlers.clear()
    torch.set_num_threads(1)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    status = 1
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = 0 if end.code in (None, 0) else 1
        print(end)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    return status


class ExamplesTestsAccelerate:
    """Base class of their tests."""

    _launch_args: list[str] = []
