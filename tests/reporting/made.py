"""Output folders of runs, made by what writes those of real ones, but without training."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.growth import GrowthConfig, GrowthScheduler
from autoprog_diffusion.training.arguments import GrowthArguments
from autoprog_diffusion.training.history import describe_model, note_start
from autoprog_diffusion.training.metrics import Metrics
from autoprog_diffusion.training.recipe_arguments import Arguments, OutputArguments, TrainArguments
from autoprog_diffusion.training.saved_metrics import write_growth_json, write_metrics_json


GRID_SIZE = (640, 160)


@dataclass(frozen=True)
class Made:
    """How a run is made.

    Attributes:
        steps: Optimizer steps of the whole run.
        done: Those that are done; all of them by default.
        blocks: Of the model.
        stages: Of the plan.
        speed: How fast the loss falls.
        model: Name of the model.
        width: Of its layers.
        held_out: Whether a held-out loss was measured.
        captions: Of the pictures.
        source: Of the data.
        learning_rate: A setting.
        decisions: Of a search.
        command: As it was typed.
    """

    steps: int = 64
    done: int | None = None
    blocks: int = 6
    stages: int = 4
    speed: float = 1.0
    model: str | None = None
    width: int = 4
    held_out: bool = True
    captions: tuple[str, ...] = ("an apple", "a pear")
    source: str = "images"
    learning_rate: float = 1e-4
    decisions: Sequence[dict[str, Any]] = field(default_factory=list)
    command: tuple[str, ...] = ("recipes/finetune_sd.py", "--max_train_steps", "64")


class Block(torch.nn.Linear):
    """A block of the model."""


class Denoiser(torch.nn.Sequential):
    """The model whose training is made up."""


def make_run(folder: Path, made: Made = Made()) -> Path:  # noqa: B008, frozen
    """Write the output folder of a run; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    done = made.steps if made.done is None else made.done
    model = Denoiser(*[Block(made.width, made.width) for _ in range(made.blocks)])
    config = GrowthConfig(num_stages=made.stages, stage_embedding=False)
    growth = GrowthScheduler(model, config, blocks=["*"])
    optimizer = torch.optim.AdamW(growth.parameters())
    growth.prepare(model, num_training_steps=made.steps, optimizer=optimizer)
    metrics = Metrics()
    growth.plan.save(folder / "growth_plan.json")
    for step in range(done):
        metrics.add(**row_of(step, growth, made))
        growth.step()
    growth.decisions.extend(made.decisions)
    _write_run_json(folder, made, model)
    place = folder
    if done < made.steps:
        place = folder / "checkpoints" / f"checkpoint-{done}"
        place.mkdir(parents=True)
    write_growth_json(place / "growth.json", growth, metrics, {"getting ready": 3.0, "training": 40.0, "saving": 1.0})
    write_metrics_json(place / "metrics.json", metrics)
    if place != folder:
        sizes = {path.name: path.stat().st_size for path in place.iterdir()}
        (place / "complete.json").write_text(json.dumps({"step": done, "written": 1, "files": sizes}))
    if made.held_out:
        (folder / "held_out.json").write_text(json.dumps(held_out_of(done, made)))
    _draw(folder, made, done)
    return folder


def row_of(step: int, growth: GrowthScheduler, made: Made) -> dict[str, Any]:
    """Metrics of one step: the loss falls and is noisy, and a step is as costly as many blocks train."""
    share = growth.trainable_fraction
    noise = math.sin(12.9898 * (step + 1)) * 0.08
    seconds = 0.2 + 0.4 * share + (0.3 if step == 0 else 0.0)
    return {
        "loss": 0.2 + 0.8 * math.exp(-made.speed * step / 20) + noise,
        "seconds": seconds,
        "cpu_seconds": 1.4 * seconds,
        "stage": growth.stage,
        "searching": False,
        "blocks": len(growth.plan.stages[growth.stage].blocks),
        "trainable": share,
        "resolution": 64,
        "flops": 10**9 * (1 + 2 * share),
        "memory": int(2**30 * (0.5 + 0.5 * share)),
    }


def held_out_of(done: int, made: Made) -> dict[str, Any]:
    """A held-out loss that is lowest at three quarters of the run, in four ranges of timesteps."""
    every = max(1, made.steps // 8)
    best_step = every * 6
    evaluations = []
    for step in range(0, done + 1, every):
        value = 0.25 + 0.6 * math.exp(-made.speed * step / 20) + max(0, step - best_step) / made.steps / 3
        by_range = [value * factor for factor in (2.5, 1.0, 0.4, 0.1)]
        entry = {"step": step, "loss": value, "noise": 0.01 if step else 0.0, "by_range": by_range, "seconds": 0.2}
        evaluations.append(entry)
    best = min(evaluations[1:], key=lambda entry: entry["loss"])
    return {
        "evaluations": evaluations,
        "ranges": [[0.0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1.0]],
        "best": {"step": best["step"], "loss": best["loss"]},
        "stopped": None,
        "images": 40,
        "draws": 4,
    }


def _write_run_json(folder: Path, made: Made, model: torch.nn.Module) -> None:
    output = OutputArguments(output_dir=str(folder))
    train = TrainArguments(learning_rate=made.learning_rate, max_train_steps=made.steps)
    growth = GrowthArguments(num_stages=made.stages)
    args = Arguments(train=train, growth=growth, output=output)  # type: ignore[arg-type]
    settings = json.loads(json.dumps(asdict(args)))
    settings["model"]["pretrained_model_name_or_path"] = made.model
    settings["given"] = ["max_train_steps", "output_dir"]
    report = DataReport()
    reading = report.add("trained on", made.source)
    reading.used = 100
    reading.leave_out("hidden", [f".{caption}.png" for caption in made.captions])
    reading.notes.append(f"captions are those of {made.source}")
    start = {
        "date": "2026-01-02T03:04:05+00:00",
        "step": 0,
        "steps": made.steps,
        "num_processes": 1,
        "command": list(made.command),
        "arguments": "Arguments",
        "versions": {"torch": torch.__version__},
        "identity": {"images": 100, "digest": "abc"},
        "model": describe_model(model),
        "settings": settings,
    }
    note_start(folder / "run.json", [], start, report.to_dict())


def _draw(folder: Path, made: Made, done: int) -> None:
    """Grids of the middle of training; a run's own drawing of them is slower."""
    for step in (made.steps // 4, made.steps // 2):
        if step <= done:
            Image.new("RGB", GRID_SIZE, (40, 90, step % 255)).save(folder / f"validation-{step}.png")
