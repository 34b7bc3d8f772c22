"""Metrics of a step for the progress bar; metrics, pictures and settings of a run for the trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.protocol import Growth

from .arguments import flat
from .decision_table import is_chosen, scores


if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

# Name of a value for the trackers -> column of the metrics.
LOGGED = {
    "train_loss": "loss",
    "growth/stage": "stage",
    "growth/blocks": "blocks",
    "growth/resolution": "resolution",
    "growth/trainable_fraction": "trainable",
    "growth/step_seconds": "seconds",
    "growth/step_flops": "flops",
    "growth/memory_bytes": "memory",
}


# In place of tqdm's own time left, which knows nothing of stages.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<LEFT, {rate_fmt}{postfix}]"


def show_step(bar: tqdm, row: Mapping[str, float], stages: int, left: float | None = None) -> None:
    """Move the progress bar by one step, with the step's metrics beside it.

    Args:
        bar: The progress bar.
        row: Metrics of the step.
        stages: How many stages there are.
        left: Seconds of the steps to come; None leaves them to the bar.
    """
    if left is not None:
        bar.bar_format = BAR.replace("LEFT", tqdm.format_interval(left))
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


def log_pictures(accelerator: Accelerator, name: str, images: Sequence[Image.Image], step: int) -> None:
    """Give pictures to every tracker that takes some.

    Args:
        accelerator: Its trackers; only the main process has any.
        name: Under which they appear.
        images: Of one size.
        step: Number of optimizer steps done.
    """
    for tracker in accelerator.trackers:
        takes = getattr(tracker, "log_images", None)
        if takes is None or not images:
            continue
        # TensorBoard wants one array, and the order of its axes.
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        batch = np.stack([np.asarray(image.convert("RGB")) for image in images])
        takes({name: batch}, step=step, **options)


def hyper_parameters(growth: Growth, args: Any) -> dict[str, bool | int | float | str]:
    """The settings of a run and its plan, as the flat numbers and words that trackers take.

    Args:
        growth: The prepared growth object.
        args: Arguments of the script, a dataclass.

    Returns:
        A value for every flag, for every setting of growth that is no flag, and, under `plan/`, for the plan.
    """
    values = growth.config.to_dict() | flat(asdict(args))
    plain = {name: _plain(value) for name, value in values.items() if name != "given"}
    return plain | plan_parameters(growth.plan)


def plan_parameters(plan: GrowthPlan) -> dict[str, bool | int | float | str]:
    """A plan as flat numbers and words: `plan/stages`, and start, blocks and resolution of `plan/stage_1` and on.

    Example:
        >>> from autoprog_diffusion.growth.plan import Stage
        >>> plan = GrowthPlan(4, 100, (Stage(0, (0, 1, 3)),))
        >>> plan_parameters(plan)["plan/stage_1/blocks"]
        '0-1, 3'
    """
    values: dict[str, bool | int | float | str] = {
        "plan/steps": plan.num_training_steps,
        "plan/blocks": plan.num_blocks,
        "plan/stages": len(plan.stages),
    }
    for number, stage in enumerate(plan.stages, start=1):
        values[f"plan/stage_{number}/start"] = stage.start
        values[f"plan/stage_{number}/blocks"] = ranges(stage.blocks)
        values[f"plan/stage_{number}/resolution"] = stage.resolution
    return values


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in words: neighbours are joined by a dash.

    Example:
        >>> ranges([0, 1, 2, 5, 7, 8])
        '0-2, 5, 7-8'
    """
    if not numbers:
        return "none"
    ends = [index for index, (low, high) in enumerate(pairwise(numbers), start=1) if high != low + 1]
    words = []
    for start, stop in pairwise([0, *ends, len(numbers)]):
        first = numbers[start]
        last = numbers[stop - 1]
        words.append(f"{first}" if first == last else f"{first}-{last}")
    return ", ".join(words)


def _plain(value: Any) -> bool | int | float | str:
    """A value as trackers take it: numbers and words stay, and the rest becomes words."""
    return value if isinstance(value, bool | int | float | str) else str(value)
