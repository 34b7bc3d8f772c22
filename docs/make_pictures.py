"""The pictures of the concepts page, drawn from plans and averages as the library makes them.

python docs/make_pictures.py  # writes docs/images/schedules.png and docs/images/average.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl


mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, fixed_plan
from autoprog_diffusion.growth.power_function import decay
from autoprog_diffusion.growth.presets import freezing_from


IMAGES = Path(__file__).parent / "images"
BLOCKS = 12
STEPS = 1000
EXPONENT = 3.0  # of the recipes' average
TRAINED, FROZEN = "#3f51b5", "#d9dce8"
SCHEDULES = {
    "freeze late: the default": GrowthConfig(**freezing_from(0.4)),
    "unfreeze: AutoProg-Zero": GrowthConfig(direction="unfreeze", order="interleaved"),
    "windows: for memory": GrowthConfig(direction="window", num_stages=4),
}


def draw_plan(axes: Any, plan: GrowthPlan, title: str) -> None:
    """A row for every block, a bar for every stage in which it trains."""
    ends = [stage.start for stage in plan.stages[1:]] + [plan.num_training_steps]
    for stage, end in zip(plan.stages, ends):
        for block in range(plan.num_blocks):
            colour = TRAINED if block in stage.blocks else FROZEN
            axes.barh(block, end - stage.start, left=stage.start, height=0.9, color=colour, linewidth=0)
    axes.set_title(title, fontsize=11)
    axes.set_xlim(0, plan.num_training_steps)
    axes.set_xlabel("optimizer step")
    axes.set_yticks([0, plan.num_blocks - 1], ["first block", "last block"])
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_schedules(path: Path) -> None:
    """What trains when, in three schedules side by side."""
    figure, places = plt.subplots(1, len(SCHEDULES), figsize=(12, 3), sharey=True)
    for axes, (title, config) in zip(places, SCHEDULES.items()):
        draw_plan(axes, fixed_plan(config, BLOCKS, STEPS), title)
    handles = [Patch(color=TRAINED, label="trains"), Patch(color=FROZEN, label="is frozen")]
    figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def shares(steps: int) -> list[float]:
    """How much the weights of every step count in the average after so many steps."""
    weights: list[float] = []
    for step in range(1, steps + 1):
        kept = decay(EXPONENT, step)
        weights = [kept * weight for weight in weights] + [1 - kept]
    return weights


def draw_average(path: Path) -> None:
    """The shares in the average, for three lengths of a run."""
    figure, axes = plt.subplots(figsize=(7, 3))
    for steps in (250, 500, 1000):
        weights = shares(steps)
        axes.plot(range(1, steps + 1), weights, color=TRAINED, alpha=0.3 + 0.7 * steps / STEPS)
        axes.annotate(f"after {steps} steps", (steps, weights[-1]), ha="right", va="bottom", fontsize=9)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("share in the average")
    axes.set_ylim(0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw both."""
    draw_schedules(IMAGES / "schedules.png")
    draw_average(IMAGES / "average.png")


if __name__ == "__main__":
    main()
