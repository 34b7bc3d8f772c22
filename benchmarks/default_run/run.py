"""What does the default fine-tuning cost, stage by stage, and what does it save against full fine-tuning?

    python benchmarks/default_run/run.py             # runs recipes/finetune_sd.py, about 5 minutes on 2 idle cores
    python benchmarks/default_run/run.py --run out   # out: a finished default run

summary.json is the growth.json of the run, with shares of a full step per stage and the saving in percent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import ROOT, load, print_rows, save


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """The run with percentages, of every stage against the first one, which trains everything."""
    full = run["stages"][0]
    stages = []
    for stage in run["stages"]:
        shares = {
            "trained_percent": 100 * stage["trainable"],
            "flops_percent": 100 * stage["flops"] / full["flops"],
            "time_percent": 100 * stage["step_seconds"] / full["step_seconds"],
        }
        stages.append({**stage, **shares})
    # The recipe reports how many times as much full fine-tuning takes for as many steps.
    saved = {key: 100 * (1 - 1 / ratio) for key, ratio in run["saving_against_full"].items()}
    return {**run, "stages": stages, "saved_percent": saved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run; without it one is started")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("summary.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.run is None:
            command = [sys.executable, "-m", "accelerate.commands.launch", "recipes/finetune_sd.py"]
            subprocess.run([*command, "--output_dir", folder, "--overwrite_output_dir"], check=True, cwd=ROOT)
        result = summary(load((args.run or Path(folder)) / "growth.json"))
    save(args.output, result)
    print_rows("the default run", result["stages"])
    print(f"saved in percent: {result['saved_percent']}")


if __name__ == "__main__":
    main()
