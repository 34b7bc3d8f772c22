"""Wall time of a training step of the bundled models with one thread and with two, and of AdamW, ordinary and fused.

    python benchmarks/against_diffusers/threads.py        # a minute, on an idle machine of two cores or more

Settings take turns in one process, so that a drifting machine touches all of them alike; medians over the rounds.
With another job on the machine two threads are slower than one: after every operation each waits for the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import ASSETS, facts, print_rows, save


HERE = Path(__file__).parent
BATCH = 16
ROUNDS = 8
Model = tuple[nn.Module, dict[str, Any]]


def unet() -> Model:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(ASSETS / "tiny_sd" / "unet")
    side = model.config.sample_size
    inputs = {
        "sample": torch.randn(BATCH, model.config.in_channels, side, side),
        "timestep": torch.randint(0, 1000, (BATCH,)),
        "encoder_hidden_states": torch.randn(BATCH, 16, model.config.cross_attention_dim),
    }
    return model, inputs


def dit() -> Model:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(ASSETS / "tiny_dit" / "transformer")
    side = model.config.sample_size
    inputs = {
        "hidden_states": torch.randn(BATCH, model.config.in_channels, side, side),
        "timestep": torch.randint(0, 1000, (BATCH,)),
        "class_labels": torch.randint(0, 8, (BATCH,)),
    }
    return model, inputs


def sd3() -> Model:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_pretrained(ASSETS / "tiny_flow" / "transformer")
    side = model.config.sample_size
    inputs = {
        "hidden_states": torch.randn(BATCH, model.config.in_channels, side, side),
        "timestep": 1000 * torch.rand(BATCH),
        "encoder_hidden_states": torch.randn(BATCH, 32, model.config.joint_attention_dim),
        "pooled_projections": torch.randn(BATCH, model.config.pooled_projection_dim),
    }
    return model, inputs


def timed(run: Callable[[], object], threads: int) -> float:
    """Wall time of a call, in milliseconds."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def measure(name: str, built: Model) -> dict[str, Any]:
    """A row: medians of all settings."""
    model, inputs = built
    model.train()
    fused = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ordinary = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def passes() -> None:
        model.zero_grad()
        model(**inputs).sample.square().mean().backward()

    settings: dict[str, tuple[Callable[[], object], int]] = {
        "passes_1": (passes, 1),
        "passes_2": (passes, 2),
        "adamw": (ordinary.step, 1),
        "adamw_fused": (fused.step, 1),
    }
    times: dict[str, list[float]] = {key: [] for key in settings}
    for _ in range(ROUNDS):
        for key, (run, threads) in settings.items():
            times[key].append(timed(run, threads))
    row = {key: median(values[1:]) for key, values in times.items()}
    before = row["passes_1"] + row["adamw"]
    return {
        "model": name,
        **row,
        "threads_ratio": row["passes_1"] / row["passes_2"],
        "fused_percent": 100 * (row["adamw"] - row["adamw_fused"]) / before,
    }


def main() -> None:
    rows = [measure("UNet", unet()), measure("DiT", dit()), measure("SD3", sd3())]
    save(HERE / "threads.json", {"rows": rows, **facts(0)})
    print_rows("milliseconds on an idle machine", rows)


if __name__ == "__main__":
    main()
