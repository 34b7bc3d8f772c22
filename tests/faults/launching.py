"""Launching `worker.py` on one or two ranks, with a time limit: a job that hangs is a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from .worker import Settings


WORKER = Path(__file__).with_name("worker.py")
LIMIT = 900  # seconds; a healthy run takes about ten on an idle machine, a busy one must not fail


def launch(folder: Path, settings: Settings, ranks: int) -> tuple[int, str]:
    """Exit status and output of a run in `folder`; raises `subprocess.TimeoutExpired` where it hangs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    command = [sys.executable, str(WORKER), str(folder)]
    if ranks > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(WORKER), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment, cwd=folder)
    return done.returncode, done.stdout + done.stderr


def was_killed(folder: Path) -> bool:
    """Whether the last run in `folder` died as it was told to; forgotten by asking."""
    mark = folder / "killed"
    killed = mark.exists()
    mark.unlink(missing_ok=True)
    return killed


def finish(folder: Path, settings: Settings, ranks: int) -> None:
    """Run to the end, from wherever the folder stands, without dying."""
    status, output = launch(folder, replace(settings, place="nowhere"), ranks)
    if status:
        raise RuntimeError(output[-3000:])


def found_wrong(folder: Path) -> list[str]:
    """Everything that the ranks of all runs in `folder` found wrong."""
    return [line for path in sorted(folder.glob("violations-*.txt")) for line in path.read_text().splitlines()]
