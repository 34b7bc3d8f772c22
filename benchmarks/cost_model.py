"""Does the cost model predict the step time of a candidate? Predicted against measured, with a plot.

    python benchmarks/cost_model.py

Three models (the UNet of the default pipeline, a DiT, an SD3-class transformer), six candidates each. Predicted: unit
costs measured once per model (`measure_costs`), added up. Measured: real steps (forward, backward, AdamW, zero_grad)
under a GrowthScheduler that trains the candidate, medians over rounds in which the candidates take turns. About 6
minutes on 2 CPU cores.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from common import RESULTS, dit_inputs, facts, make_call, make_dit, save, without_zeros
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.growth import find_adapter, select_blocks
from autoprog_diffusion.search.cost import measure_costs
from autoprog_diffusion.search.probe import leaving_no_trace
from autoprog_diffusion.search.recorded_calls import RecordedCall


SEED, ROUNDS, BATCH = 0, 12, 8


def tiny_sd() -> tuple[nn.Module, dict[str, Any]]:
    folder = Path(__file__).parents[1] / "recipes" / "assets" / "tiny_sd"
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float()
    width = unet.config.cross_attention_dim
    inputs = {
        "sample": torch.randn(BATCH, 4, 16, 16),
        "timestep": torch.randint(0, 1000, (BATCH,)),
        "encoder_hidden_states": torch.randn(BATCH, 16, width),
    }
    return unet, inputs


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=8, attention_head_dim=64,
        num_attention_heads=4, joint_attention_dim=128, caption_projection_dim=256, pooled_projection_dim=128,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(BATCH, 4, 16, 16),
        "encoder_hidden_states": torch.randn(BATCH, 16, 128),
        "pooled_projections": torch.randn(BATCH, 128),
        "timestep": torch.randint(0, 1000, (BATCH,)),
    }
    return without_zeros(model), inputs


MODELS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "UNet of the default pipeline": tiny_sd,
    "DiT, 12 blocks of 256": lambda: (make_dit(12, 256), dit_inputs(BATCH)),
    "SD3-class, 8 blocks of 256": sd3,
}
CANDIDATES = (
    ("interleaved", 0.25),
    ("interleaved", 0.5),
    ("suffix", 0.25),
    ("suffix", 0.5),
    ("prefix", 0.5),
    ("full", 1.0),
)


def stepper(model: nn.Module, call: RecordedCall, blocks: tuple[int, ...], count: int) -> Callable[[], None]:
    """One real training step of a candidate, ready to be timed."""
    model = copy.deepcopy(model)
    growth = GrowthScheduler(model, GrowthConfig(num_stages=1, stage_embedding=False))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-6)
    growth.prepare(model, num_training_steps=1, plan=GrowthPlan(count, 1, (Stage(0, blocks),)), optimizer=optimizer)

    def step() -> None:
        call.run(model).backward(call.gradient)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(name: str) -> list[dict[str, Any]]:
    model, inputs = MODELS[name]()
    layout = find_adapter(model).layout(model)
    count, call = len(layout.blocks), make_call(model, inputs)
    sets = {
        f"{order} {share:.0%}": tuple(range(count)) if order == "full" else select_blocks(order, count, share)
        for order, share in CANDIDATES
    }
    steps = {label: stepper(model, call, blocks, count) for label, blocks in sets.items()}
    times: dict[str, list[float]] = {label: [] for label in steps}
    predictions: dict[str, list[float]] = {label: [] for label in steps}
    for turn in range(ROUNDS + 1):
        for label, step in steps.items():
            started = time.perf_counter()
            step()
            if turn:
                times[label].append(time.perf_counter() - started)
        if turn % 4 == 2:
            with leaving_no_trace(model):
                costs = measure_costs(model, layout, call, [blocks[0] for blocks in sets.values()], repeats=5)
            for label, blocks in sets.items():
                predictions[label].append(costs.step(layout, blocks))
    return [
        {"model": name, "candidate": label, "predicted": median(predictions[label]), "measured": median(times[label])}
        for label in steps
    ]


def draw(rows: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 6), dpi=110)
    axis = figure.subplots()
    for index, name in enumerate(MODELS):
        mine = [row for row in rows if row["model"] == name]
        points = [[1000 * row[key] for row in mine] for key in ("measured", "predicted")]
        axis.scatter(*points, label=name, color=f"C{index}")
    low, high = (f(1000 * row["measured"] for row in rows) for f in (min, max))
    line = [0.8 * low, 1.2 * high]
    axis.plot(line, line, color="0.4", linewidth=1)
    axis.fill_between(line, [0.9 * x for x in line], [1.1 * x for x in line], color="0.5", alpha=0.2, label="10 %")
    axis.set(xlabel="measured step (ms)", ylabel="predicted step (ms)", xscale="log", yscale="log")
    axis.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "cost_model.png")


def summed(model: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of the prediction over some candidates."""
    errors = sorted(abs(row["error"]) for row in rows)
    return {
        "model": model,
        "candidates": len(rows),
        "within_10_percent": sum(error <= 0.1 for error in errors),
        "median_error_percent": 100 * median(errors),
        "largest_error_percent": 100 * errors[-1],
    }


def main() -> None:
    torch.manual_seed(SEED)
    rows = [row for name in MODELS for row in compare(name)]
    print(f"{'model':32}{'candidate':20}{'predicted':>12}{'measured':>12}{'error':>9}")
    for row in rows:
        row["error"] = row["predicted"] / row["measured"] - 1
        print(
            f"{row['model']:32}{row['candidate']:20}{1000 * row['predicted']:10.1f}ms{1000 * row['measured']:10.1f}ms"
            f"{row['error']:+9.1%}"
        )
    names = dict.fromkeys(row["model"] for row in rows)
    summary = [summed(name, [row for row in rows if row["model"] == name]) for name in names]
    summary.append(summed("all", rows))
    for row in summary:
        print(
            "{model}: {within_10_percent} of {candidates} within 10 %, median {median_error_percent:.1f} %".format(
                **row
            )
        )
    save("cost_model", {**facts(SEED), "rows": rows, "summary": summary})
    draw(rows)


if __name__ == "__main__":
    main()
