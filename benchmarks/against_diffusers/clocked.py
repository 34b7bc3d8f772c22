"""Runs a training script and notes when its optimizer steps: `python clocked.py TIMES.json SCRIPT ARGUMENTS...`.

The file holds the wall clock and the CPU clock of the process after every optimizer step, in seconds.
"""

from __future__ import annotations

import atexit
import importlib
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


STAND_IN = Path(__file__).resolve().parents[2] / "tests" / "plugin"
times: list[tuple[float, float]] = []
gpu_peaks: list[int] = [0]  # allocated bytes; a script may set its counter back between two steps


def note(*ignored: Any) -> None:
    """Hook after every optimizer step; of a GPU it waits for the step's end, on both sides alike."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        gpu_peaks.append(torch.cuda.max_memory_allocated())
    times.append((time.perf_counter(), time.process_time()))


def write(path: str) -> None:
    """Write what was noted."""
    values = {"steps": times, "threads": torch.get_num_threads(), "gpu_peak": max(gpu_peaks)}
    Path(path).write_text(json.dumps(values), encoding="utf-8")


def cut_captions() -> None:
    """Let text encoders take as many tokens as they have places.

    Diffusers' script for SD3 pads captions to 77 tokens, and the encoder of the bundled model has 16 places.
    """
    from transformers import CLIPTextModelWithProjection

    forward = CLIPTextModelWithProjection.forward

    def short(self: Any, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, input_ids[:, : self.config.max_position_embeddings], *args, **kwargs)

    CLIPTextModelWithProjection.forward = short


def main() -> None:
    _, path, script, *words = sys.argv
    register_optimizer_step_post_hook(note)
    atexit.register(write, path)
    sys.path.append(str(STAND_IN))
    # Diffusers' scripts need a few transforms of torchvision.
    importlib.import_module("run_script").provide_torchvision()
    cut_captions()
    folder = str(Path(script).parent)
    sys.path.insert(0, folder)
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
