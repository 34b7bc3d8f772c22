"""Step time and peak memory of every stage of a run, of a model of published size."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from device import GB, begin_peak, read_peak, times
from loads import Load
from stage_runs import StagedRun, staged_run
from ways import RANK, Way

from autoprog_diffusion.tasks.lora import LoraSettings, add_lora


HELD = ("weights", "gradients", "optimizer", "activations")
SPARED = 0.5  # of the activations of full fine-tuning, by the budget of ways that have one
BESIDE = 1.01  # times the rest: late freezing has a stage embedding
ROOM = 0.9  # of the device, where full fine-tuning does not fit


@dataclass(frozen=True)
class Length:
    """Steps of a stage.

    Attributes:
        warm_up: Not counted: kernels are chosen, and the optimizer's state is made.
        timed: Of which the median counts.
    """

    warm_up: int
    timed: int


LONG = Length(warm_up=4, timed=10)
SHORT = Length(warm_up=1, timed=1)


def budget_of(row: dict[str, Any] | None, memory_gb: float) -> float:
    """Memory that a way with a budget may take, in 10^9 bytes.

    Args:
        row: Of full fine-tuning; None, or one that was refused, where it does not fit.
        memory_gb: Of the device.
    """
    if row is None or "held" not in row:
        return ROOM * memory_gb
    held = row["held"]
    return (BESIDE * sum(held[key] for key in HELD[:3]) + SPARED * held["activations"]) / GB


def measure(load: Load, way: Way, budget: float | None, device: torch.device, *, dry: bool) -> dict[str, Any]:
    """Every stage of a run, and the run's mean step.

    Args:
        load: Model and batch.
        way: How it trains.
        budget: In 10^9 bytes, of a way that has one.
        device: Where.
        dry: Whether everything is tiny and short.
    """
    torch.manual_seed(0)
    length = SHORT if dry else LONG
    model: Any = load.build(device, dry=dry)
    count = sum(parameter.numel() for parameter in model.parameters())
    if way.lora:
        add_lora(model, LoraSettings(rank=RANK), seed=0)
        model.to(device)
    with device:
        run = staged_run(
            model,
            load.inputs(model, device, dry=dry),
            way.config(model, budget),
            steps=length.warm_up + length.timed + 1,
            make_optimizer=way.make_optimizer(),
            autocast=True,
        )
    stages = [measure_stage(run, device, length) for _ in run.shares]
    row: dict[str, Any] = {
        "parameters": count,
        "batch": len(run.inputs["timestep"]),
        "budget_gb": budget,
        "step_s": sum(share * stage["step_s"] for share, stage in zip(run.shares, stages, strict=True)),
        "peak": max(stage["allocated"] for stage in stages),
        "reserved": max(stage["reserved"] for stage in stages),
        "shares": run.shares,
        "stages": stages,
    }
    memory = run.growth.history[0].memory
    if memory is not None:
        row["held"] = {key: memory[key] for key in HELD}
    return row


def measure_stage(run: StagedRun, device: torch.device, length: Length) -> dict[str, Any]:
    """The current stage, which is over afterwards."""
    growth = run.growth

    def step() -> None:
        run.step()
        growth.step()

    first = times(device, step, 1)
    times(device, step, length.warm_up - 1)
    entry = growth.history[-1]
    stage = {
        "blocks": len(entry.blocks),
        "trained": growth.trainable_fraction,
        "recomputed": len(entry.recomputed or ()),
    }
    begin_peak(device)
    took = times(device, step, length.timed)
    run.step()  # the last one, after which `growth.step` enters the next stage
    peak = read_peak(device)
    growth.step()
    return {
        **stage,
        "first_s": first[0],
        "step_s": median(took),
        "fastest_s": min(took),
        "slowest_s": max(took),
        **peak,
    }
