"""How far `autoprog-diffusion plan` is from what runs take: memory, FLOPs and time; and how long it takes itself.

    python benchmarks/planner_accuracy.py
    python benchmarks/planner_accuracy.py --parts costs

memory: peaks that were measured on real runs of medium models (benchmarks/memory/validation.json), and peaks of the
tracker over whole runs. costs: FLOPs by PyTorch's counter on real steps, and CPU time of one thread between two
calibrations, since other jobs load the machine; run it with OMP_NUM_THREADS=1. plans: the command itself for eight
published models. About 10 minutes of two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any


HERE = Path(__file__).parent
sys.path.append(str(HERE / "memory"))

import torch
from common import facts, load, print_rows, save
from medium import MEDIUM

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.fixed import fixed_plan
from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.planner.calibrate import calibrate
from autoprog_diffusion.planner.candidates import Estimator
from autoprog_diffusion.planner.device import without_memory
from autoprog_diffusion.planner.inputs import make_inputs
from autoprog_diffusion.planner.memory import stage_memory
from autoprog_diffusion.planner.models import ModelSource, find_model
from autoprog_diffusion.planner.profile import Profile, StageRequest, make_profile
from autoprog_diffusion.planner.settings import Plan
from autoprog_diffusion.planner.shapes import Shape
from autoprog_diffusion.planner.step import Run, stages
from autoprog_diffusion.planner.tracker import MemoryTracker


RESULTS = HERE / "planner_accuracy.json"
PLOT = HERE / "planner_accuracy.png"
# Text of the medium models, as benchmarks/memory/medium.py has it.
MODELS = {"UNet": None, "DiT": None, "SD3": 154}
FULL = {"num_stages": 1, "stage_embedding": False}
AGAIN = {"checkpointing": "all"}
MEASURED = {"full": FULL, "full, checkpointing": {**FULL, **AGAIN}, "freeze": {"num_stages": 3}}
WINDOW = {"direction": "window", "num_stages": 3, "frozen_dtype": "float8", **AGAIN}
TRACKED = (
    Plan("full", FULL),
    Plan("full, checkpointing", {**FULL, **AGAIN}),
    Plan("freeze"),
    Plan("bfloat16, 8-bit Adam, in backward", {**FULL, **AGAIN}, "adamw8bit", "bfloat16", step_in_backward=True),
    Plan("window 1/3, float8, 8-bit Adam, in backward", WINDOW, "adamw8bit", step_in_backward=True),
    Plan("LoRA, nf4, checkpointing", {**FULL, **AGAIN, "frozen_dtype": "nf4"}, lora=16),
)
FEW = {"num_layers": 2, "num_single_layers": 4}
LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
PUBLISHED = ("sd15", "sdxl", "sd3", "sd3.5-large", "flux-dev", "z-image", "qwen-image", "dit-xl")
STEPS = 3  # of a stage whose time is measured; the median counts


def short(name: str, **config: Any) -> ModelSource:
    """A published model of fewer blocks."""
    source = find_model(name)
    return ModelSource(f"{source.name}, fewer blocks", source.cls, {**source.config, **config}, pixels=source.pixels)


def of_medium(name: str) -> tuple[ModelSource, Shape]:
    """A medium model, and the shape of one image."""
    medium = MEDIUM[name]
    return ModelSource(name, medium.cls, medium.config), Shape(side=64, text=MODELS[name])


def profile_of(name: str, growth: GrowthConfig) -> Profile:
    """The profile of a medium model in float32, with the work of its stages."""
    source, shape = of_medium(name)
    return make_profile(source, shape, autocast=False, stages=StageRequest(growth, growth.num_stages, 1))


def memory_rows() -> list[dict[str, Any]]:
    """Peaks: predicted, and measured on real runs or by the tracker."""
    rows = []
    known = load(HERE / "memory" / "validation.json")["rows"]
    for name in MODELS:
        profile = profile_of(name, GrowthConfig(num_stages=1))
        for row in known:
            if row["model"] == name and row["plan"] in MEASURED:
                growth = MEASURED[row["plan"]]
                blocks = blocks_of(profile, growth)[row["stage"]]
                found = stage_memory(profile, Plan("", growth, autocast=False), blocks)
                rows.append(compared("real run", row, found["peak"], row["measured"]))
    for source in (short("sd15", block_out_channels=[320, 640], **LEVELS), short("flux-dev", **FEW)):
        profile = make_profile(source, Shape())
        for plan in TRACKED:
            true = tracked(source, plan)
            for index, blocks in enumerate(blocks_of(profile, plan.growth)):
                row = {"model": source.name, "plan": plan.name, "stage": index}
                rows.append(compared("tracker", row, stage_memory(profile, plan, blocks)["peak"], true[index]))
    return rows


def blocks_of(profile: Profile, growth: dict[str, Any]) -> list[tuple[int, ...]]:
    """Blocks that the stages train."""
    config = GrowthConfig(**growth)
    planned = fixed_plan(config, len(profile.names), config.num_stages, profile.block_sizes)
    return [stage.blocks for stage in planned.stages]


def tracked(source: ModelSource, plan: Plan) -> list[int]:
    """Peaks of the stages, by the tracker."""
    with torch.device("meta"):
        model = source.build()
    with without_memory() as device, MemoryTracker() as tracker:
        run = Run(plan, source.build, lambda _: make_inputs(model, Shape()), device)
        return [stage.peak for stage in stages(run, tracker)]


def compared(kind: str, row: dict[str, Any], predicted: float, measured: float) -> dict[str, Any]:
    """One row."""
    return {
        "kind": kind,
        **{key: row[key] for key in ("model", "plan", "stage")},
        "predicted": predicted,
        "measured": measured,
        "ratio": predicted / measured,
    }


def cost_rows() -> dict[str, list[dict[str, Any]]]:
    """FLOPs and CPU time of the stages of the default plan: predicted, and measured on real steps."""
    growth = GrowthConfig()
    rows: dict[str, list[dict[str, Any]]] = {"flops": [], "time": []}
    cpu = torch.device("cpu")
    for name in MODELS:
        profile = profile_of(name, growth)
        estimator = Estimator(profile, None, growth.num_stages)
        model: Any = MEDIUM[name].build().train()
        inputs = make_inputs(model, of_medium(name)[1])
        scheduler = GrowthScheduler(model, growth)
        optimizer = torch.optim.AdamW(scheduler.parameters())
        scheduler.prepare(model, num_training_steps=growth.num_stages, optimizer=optimizer)
        before = calibrate(cpu, torch.float32)
        stages_of_model = []
        for index, flops in enumerate(profile.stage_flops):
            trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
            with flop_counter() as counter:
                step(model, inputs)
            optimizer.step()
            took = median(timed(model, inputs, optimizer) for _ in range(STEPS))
            work = estimator.work(Plan(""), scheduler.plan.stages[index].blocks, 1)
            row = {"model": name, "plan": "freeze", "stage": index}
            rows["flops"].append(compared("counted", row, flops, counter.get_total_flops()))
            stages_of_model.append((row, work, trained, took, os.getloadavg()[0]))
            scheduler.step()
        after = calibrate(cpu, torch.float32)
        for row, work, trained, took, load_then in stages_of_model:
            # The machine of the same minutes.
            seconds = (before.seconds(work, trained) + after.seconds(work, trained)) / 2
            rows["time"].append({**compared("one thread", row, seconds, took), "load": load_then})
            print(rows["time"][-1], vars(before), vars(after), vars(work), flush=True)
    return rows


def step(model: Any, inputs: dict[str, Any]) -> None:
    """A forward and backward pass."""
    model(**inputs, return_dict=False)[0].square().mean().backward()


def timed(model: Any, inputs: dict[str, Any], optimizer: torch.optim.Optimizer) -> float:
    """CPU time of a training step."""
    begin = time.process_time()
    step(model, inputs)
    optimizer.step()
    took = time.process_time() - begin
    optimizer.zero_grad()
    return took


def plan_rows() -> list[dict[str, Any]]:
    """The command for the published models, on its own: wall time, and CPU time of all its processes."""
    rows = []
    for name in PUBLISHED:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        words = [sys.executable, "-m", "autoprog_diffusion.commands", "plan", name, "--gpu", "4090", "--json"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        wall = time.perf_counter() - begin
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        planned = json.loads(done.stdout)
        rows.append(
            {
                "model": planned["model"]["name"],
                "wall": wall,
                "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                "load": os.getloadavg()[0],
                "share_percent": 100 * planned["share_of_full_flops"],
                "best": [one["trained"] for one in planned["best"]],
            }
        )
        print(rows[-1], flush=True)
    return rows


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far predictions are from what was measured."""
    ratios = sorted(row["ratio"] for row in rows)
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    return {
        "count": len(rows),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "median_error_percent": 100 * errors[len(errors) // 2],
        "within_10_percent": sum(error <= 0.1 for error in errors),
        "within_15_percent": sum(error <= 0.15 for error in errors),
        "exact": sum(ratio == 1 for ratio in ratios),
    }


def draw(results: dict[str, Any]) -> None:
    """Predicted over measured, a point for every stage."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name in ("memory", "flops", "time"):
        ratios = [row["ratio"] for row in results.get(name, [])]
        axes.plot([name] * len(ratios), ratios, "o", alpha=0.4)
    axes.axhline(1.0, color="grey", linewidth=1)
    axes.set_ylabel("predicted / measured")
    figure.savefig(PLOT, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=("memory", "costs", "plans"), default=["costs", "memory", "plans"]
    )
    args = parser.parse_args()
    results = {key: value for key, value in load(RESULTS).items() if key not in facts(0)}
    for part in args.parts:
        if part == "costs":
            results |= cost_rows()
        else:
            results[part] = memory_rows() if part == "memory" else plan_rows()
        measured = [name for name in ("memory", "flops", "time") if name in results]
        results["summary"] = {name: summed(results[name]) for name in measured}
        if "plans" in results:
            results["plan_command"] = {
                "count": len(results["plans"]),
                "most_wall": max(row["wall"] for row in results["plans"]),
                "most_cpu": max(row["cpu"] for row in results["plans"]),
            }
        save(RESULTS, {**facts(0), **results})
    for name in ("memory", "flops", "time", "plans"):
        print_rows(name, results.get(name, []))
    draw(results)


if __name__ == "__main__":
    main()
