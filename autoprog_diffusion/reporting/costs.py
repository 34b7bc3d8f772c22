"""Step time and memory of every stage of a run, beside what was counted or predicted."""

from __future__ import annotations

from .markup import Html, element, table
from .run_folder import Run
from .stages import full_cost
from .words import duration, loss, percent, ratio, size


def costs_section(run: Run) -> Html:
    """Step time and memory of every stage, beside what was counted or predicted before they were measured."""
    if not run.stages:
        return element("p", "No stage was measured yet.", class_="note")
    full = full_cost(run.stages, run.num_blocks)
    predicted = {record.stage: record.memory for record in run.entered}
    rows = []
    for stage in run.stages:
        memory = predicted.get(stage.stage)
        rows.append(
            [
                stage.name,
                f"{stage.steps:,}",
                f"{stage.blocks:.3g} of {run.num_blocks}",
                percent(stage.trainable),
                f"{stage.resolution:.4g} px",
                loss(stage.loss),
                duration(stage.step_seconds),
                percent(ratio(stage.step_seconds, full and full.step_seconds)),
                percent(ratio(stage.flops, full and full.flops)),
                size(stage.memory),
                size(memory),
            ]
        )
    head = [
        "Stage",
        "Steps",
        "Blocks",
        "Parameters",
        "Size",
        "Loss",
        "Step",
        "Time of a full step",
    ]
    head += ["FLOPs of a full step", "Memory", "Predicted memory"]
    note = (
        "Step: median wall time without the first step. Its FLOPs, counted, say what the plan promised of the time. "
        "Memory: allocated on the GPU, or resident on a CPU; predicted under --checkpointing auto only."
    )
    return element("div", table(head, rows, caption="Every stage"), element("p", note, class_="note"))
