"""`autoprog-diffusion plan MODEL`: what a run takes before it starts, and what fits a GPU."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from autoprog_diffusion.command_line import parse
from autoprog_diffusion.growth import GrowthConfig


NOTHING_FITS = 3
GB = 1e9
AVERAGE_BYTES = 4  # of a parameter
TERA = 1e12
LOSES = (
    "Loses: held-out loss above that of full fine-tuning, lowest and highest of the small models that were measured; "
    "of a shorter run, between measured lengths."
)


@dataclass(frozen=True)
class Arguments:
    """Plan the training of a model from its configuration alone: no weights, no GPU, no network."""

    model: Annotated[str, tyro.conf.Positional]
    """A known name (sdxl, flux-dev, sd3.5-large, ...), a config.json, its folder, or a pipeline's folder."""
    gpu: str | None = None
    """Search what fits this GPU: 4090, a100, h100, ..."""
    memory_gb: float | None = None
    """Search what fits this much memory, in 10^9 bytes."""
    batch: int = 1
    """Images of a forward pass; the search tries smaller ones too, and larger ones if this is 1."""
    pixels: int | None = None
    """Side of the images [the model's own]."""
    steps: int = 1000
    """Optimizer steps of the run."""
    direction: Literal["freeze", "unfreeze", "window"] | None = None
    """Direction of even stages to plan [what the recipes do for the model: freezing, late in the run]."""
    num_stages: int | None = None
    """Number of even stages to plan [that of the recipes]."""
    calibration: str | None = None
    """File that `autoprog-diffusion calibrate` wrote [that of this machine, unless a GPU is named]."""
    tflops: float | None = None
    """Speed that training reaches, in 10^12 FLOP/s, in place of a calibration."""
    json: bool = False
    """Print JSON instead of tables."""


def run(argv: Sequence[str]) -> int:
    """Plan, and print; 3 if nothing fits the memory.

    Args:
        argv: Words after `plan`.
    """
    args = parse(Arguments, argv, program="autoprog-diffusion plan")
    # Of the libraries' own imports, in this process that does nothing else.
    logging.getLogger().addHandler(logging.NullHandler())
    for name in ("torch", "torchao", "diffusers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Only now: it takes seconds.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from autoprog_diffusion.planner.planning import plan

        planned = plan(
            args.model,
            growth=stages_of(args),
            pixels=args.pixels,
            batch=args.batch,
            steps=args.steps,
            gpu=args.gpu,
            memory_gb=args.memory_gb,
            tflops=args.tflops,
            calibration=args.calibration,
            in_process=True,
        )
    if args.json:
        print(json.dumps(planned.to_dict(), indent=1))
    else:
        show(planned)
    return NOTHING_FITS if planned.least is not None else 0


def stages_of(args: Arguments) -> GrowthConfig | None:
    """The stages that are asked for; None for the recipes' own."""
    if args.direction is None and args.num_stages is None:
        return None
    return GrowthConfig(
        direction=args.direction or "freeze",
        num_stages=GrowthConfig().num_stages if args.num_stages is None else args.num_stages,
    )


def show(planned: Any) -> None:
    """Print tables.

    Args:
        planned: A `planner.planning.Planned`.
    """
    from rich.console import Console

    console = Console()
    source = planned.source
    console.print(
        f"[bold]{source.name}[/bold] ({source.cls}): {planned.parameters / GB:.2f} billion parameters in "
        f"{planned.blocks} blocks; {planned.pixels} pixels, batch {planned.batch}, {planned.steps} steps, bfloat16 "
        "autocast"
    )
    console.print(stage_table(planned))
    console.print(memory_table(planned))
    console.print(compared_table(planned))
    console.print(LOSES, style="dim")
    if planned.averaged:
        average = AVERAGE_BYTES * planned.parameters / GB
        console.print(
            f"It averages the weights, as recipes do at a constant rate: {average:.2f} GB more than shown, in CPU "
            "memory where a flag saves the card's.",
            highlight=False,
        )
    console.print(f"[bold]{planned.verdict}[/bold]", highlight=False)
    if planned.machine is not None:
        show_best(planned, console)


def stage_table(planned: Any) -> Any:
    """A row for every stage: what it trains and costs."""
    table = numbers_table(
        "Stages of the plan", ("Stage", "Steps", "Blocks", "Trains, M", "TFLOPs", "Peak, GB", "Step, s")
    )
    for stage in planned.stages:
        table.add_row(
            str(stage.stage + 1),
            str(stage.steps),
            str(stage.blocks),
            f"{stage.trained / 1e6:.1f}",
            f"{stage.flops / TERA:.4g}",
            f"{stage.peak / GB:.2f}",
            in_seconds(stage.seconds),
        )
    return table


def memory_table(planned: Any) -> Any:
    """A row for every stage: what its peak of memory consists of."""
    kinds = tuple(kind.capitalize() for kind in planned.stages[0].split)
    table = numbers_table("Its peak of memory, GB", ("Stage", *kinds))
    for stage in planned.stages:
        held = (f"{bytes / GB:.2f}" for bytes in stage.split.values())
        table.add_row(str(stage.stage + 1), *held)
    return table


def numbers_table(title: str, names: tuple[str, ...]) -> Any:
    """An empty table whose columns are numbers; it fits 80 characters."""
    from rich.table import Table

    table = Table(title=title)
    for name in names:
        table.add_column(name, justify="right")
    return table


def compared_table(planned: Any) -> Any:
    """The plan beside full fine-tuning, LoRA and a shorter run."""
    from rich.table import Table

    whole = planned.others[0].cost.flops * planned.steps
    table = Table(title="The whole run")
    for name in ("Run", "PFLOPs", "Of full", "Peak, GB", "Time", "Loses"):
        table.add_column(
            name,
            justify="left" if name in ("Run", "Loses") else "right",
        )
    for row in compared_rows(planned):
        table.add_row(
            row["name"],
            f"{row['flops'] / 1e15:.4g}",
            f"{row['flops'] / whole:.0%}",
            f"{row['peak'] / GB:.2f}",
            in_time(row["seconds"]),
            str(row["loses"]),
        )
    return table


def compared_rows(planned: Any) -> Iterator[dict[str, Any]]:
    """Name, FLOPs, peak, seconds and loss of the plan and of what it is compared with."""
    from autoprog_diffusion.planner.quality import shorter_quality

    yield {
        "name": "this plan",
        "flops": planned.flops,
        "peak": max(stage.peak for stage in planned.stages),
        "seconds": planned.seconds,
        "loses": planned.quality,
    }
    full = planned.others[0]
    shorter = round(planned.share * planned.steps)
    runs = [(one, one.trained, planned.steps, one.quality) for one in planned.others]
    if shorter < planned.steps:
        runs.append((full, f"full, {shorter} steps", shorter, shorter_quality(planned.share)))
    for one, name, steps, quality in runs:
        yield {
            "name": name,
            "flops": one.cost.flops * steps,
            "peak": one.peak,
            "seconds": None if one.cost.seconds is None else one.cost.seconds * steps,
            "loses": quality,
        }


def show_best(planned: Any, console: Any) -> None:
    """Print the best ways to train that fit, or the least that nothing fits."""
    limit = planned.machine.bytes / GB
    if planned.least is not None:
        least = planned.least
        console.print(
            f"[bold]Nothing fits {limit:.1f} GB.[/bold] The smallest budget is {least.peak / GB:.2f} GB: "
            f"{least.trained}, {describe(least)}."
        )
        return
    name = planned.machine.name or "this memory"
    console.print(f"[bold]Best of what fits {name} ({limit:.1f} GB for a step):[/bold]")
    for number, (one, command) in enumerate(planned.best, start=1):
        speed = "" if one.cost.seconds is None else f", {in_seconds(one.cost.seconds)} s a step"
        console.print(
            f"{number}. {one.trained}, {describe(one)}: {one.peak / GB:.1f} GB{speed}, "
            f"{one.host / GB:.0f} GB of CPU memory. Loses: {one.quality}."
        )
        console.print(f"   {command}", soft_wrap=True, highlight=False)
    if planned.calibration is not None and not planned.calibration.measured:
        console.print("Times are guesses from the data sheet: `autoprog-diffusion calibrate` measures a machine.")


def describe(candidate: Any) -> str:
    """How a candidate is trained, in words."""
    plan = candidate.plan
    words = [f"batch {candidate.batch}"]
    if plan.growth.get("frozen_dtype"):
        words.append(f"frozen weights in {plan.growth['frozen_dtype']}")
    if plan.growth.get("checkpointing"):
        words.append("checkpointing")
    words.append(plan.optimizer)
    if plan.trained_dtype != "float32":
        words.append(f"{plan.trained_dtype} weights")
    if plan.step_in_backward:
        words.append("step in backward")
    return ", ".join(words)


def in_seconds(seconds: float | None) -> str:
    """Seconds as text, or a dash."""
    return "-" if seconds is None else f"{seconds:.3g}"


def in_time(seconds: float | None) -> str:
    """A long time as text, or a dash."""
    if seconds is None:
        return "-"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
