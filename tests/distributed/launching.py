"""Starting a script of this folder on gloo ranks, and reading what every rank wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


LIMIT = 120  # seconds; a healthy launch takes about fifteen


def run_ranks(script: str, folder: Path, *arguments: str, ranks: int = 2) -> list[dict[str, Any]]:
    """What the ranks of one launch of `script` wrote to `folder`; a hang and a failing rank are failures."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--rdzv_backend", "c10d"]
    command += ["--rdzv_endpoint", "localhost:0", str(Path(__file__).with_name(script)), str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
