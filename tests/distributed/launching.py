"""Starting a script of this folder on gloo ranks, and reading what every rank wrote."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1]))

from fork_server import HANG, rank_environments, run_forked  # noqa: E402


__all__ = ["HANG", "fsdp_environment", "launch_recipe", "run_ranks"]


def run_ranks(script: str, folder: Path, *arguments: str, ranks: int = 2) -> list[dict[str, Any]]:
    """What the ranks of one launch of `script` wrote to `folder`; a hang and a failing rank are failures."""
    folder.mkdir(parents=True, exist_ok=True)
    run_forked(Path(__file__).with_name(script), [str(folder), *arguments], rank_environments(ranks), folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def fsdp_environment(config: str, ranks: int, *changes: str) -> dict[str, str]:
    """The environment that `accelerate launch --config_file recipes/configs/CONFIG` gives a script.

    Args:
        config: Name of the file.
        ranks: Number of processes.
        changes: Further flags of the launcher.
    """
    # Heavy, and only these launches need it.
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = Path(__file__).resolve().parents[2] / "recipes" / "configs" / config
    words = ["--config_file", str(file), "--num_processes", str(ranks), "--num_machines", "1"]
    words += ["--mixed_precision", "no", "--main_process_port", "0", *changes, "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    before = dict(os.environ)
    try:
        return dict(prepare_multi_gpu_env(args))
    finally:
        os.environ.clear()
        os.environ.update(before)


def launch_recipe(name: str, folder: Path, flags: list[str], base: dict[str, str], ranks: int) -> list[dict[str, Any]]:
    """What the ranks of one launch of `sharded_recipe_script.py` saw; `base` is their environment."""
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("sharded_recipe_script.py")
    environment = {**base, "HF_HOME": str(folder / "hub"), "MPLCONFIGDIR": str(folder / "plots")}
    run_forked(script, [str(folder), name, *flags], rank_environments(ranks, environment), folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
