"""Metrics of a step for the progress bar and the trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from autoprog_diffusion.growth.protocol import Growth

from .report import is_chosen, scores


if TYPE_CHECKING:
    from accelerate import Accelerator

# Name of a value for the trackers -> column of the metrics.
LOGGED = {
    "train_loss": "loss",
    "growth/stage": "stage",
    "growth/blocks": "blocks",
    "growth/resolution": "resolution",
    "growth/trainable_fraction": "trainable",
    "growth/step_seconds": "seconds",
}


def show_step(bar: tqdm, row: Mapping[str, float], stages: int) -> None:
    """Move the progress bar by one step, with the step's metrics beside it."""
    search = " search" if row["searching"] else ""
    bar.set_postfix(
        loss=f"{row['loss']:.4f}",
        stage=f"{row['stage'] + 1}/{stages}{search}",
        px=row["resolution"],
        blocks=row["blocks"],
        trains=f"{row['trainable']:.0%}",
    )
    bar.update(1)


def log_step(accelerator: Accelerator, row: Mapping[str, float], rate: float, step: int) -> None:
    """Give the trackers the metrics of a step, and its learning rate."""
    values = {name: row[column] for name, column in LOGGED.items()}
    values["lr"] = rate
    accelerator.log(values, step=step)


def log_decision(accelerator: Accelerator, growth: Growth, step: int) -> None:
    """Give the trackers the scores of a choice that a search has just made."""
    for decision in growth.decisions[-1:]:
        if decision["stage"] != growth.stage:
            continue
        chosen = next(row for row in decision["candidates"] if is_chosen(decision, row))
        values = {f"growth/search/{name}": score for name, score in scores(chosen).items()}
        if "seconds" in decision:
            values["growth/search/seconds"] = decision["seconds"]
        accelerator.log(values, step=step)
