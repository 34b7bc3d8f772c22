"""Starting a script of this folder on gloo ranks, and reading what every rank wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1]))

from fork_server import rank_environments, run_forked  # noqa: E402


def run_ranks(script: str, folder: Path, *arguments: str, ranks: int = 2) -> list[dict[str, Any]]:
    """What the ranks of one launch of `script` wrote to `folder`; a hang and a failing rank are failures."""
    folder.mkdir(parents=True, exist_ok=True)
    run_forked(Path(__file__).with_name(script), [str(folder), *arguments], rank_environments(ranks), folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
