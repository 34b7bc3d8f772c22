"""Step time and memory of every stage of a run, beside what was counted or predicted."""

from __future__ import annotations

from .markup import Html, element, table
from .run_folder import Run
from .stages import Planned, StageCost, full_cost
from .words import DASH, duration, loss, percent, ratio, size


HEAD = (
    "Stage",
    "Steps",
    "Blocks",
    "Parameters",
    "Size",
    "Loss",
    "Step",
    "Predicted",
    "Time of a full step",
    "FLOPs of a full step",
    "Memory",
    "Predicted",
)
NOTE = (
    "Step: median wall time without the first step of a stage. FLOPs are counted: they say what the plan promised of "
    "the time. Memory: allocated on the GPU, or resident on a CPU."
)
HINT = (
    "Predictions are there once a run has done three steps (time), with --checkpointing auto (memory), or where the "
    "folder holds planned.json, the output of autoprog-diffusion plan --json."
)


def costs_section(run: Run) -> Html:
    """A row for every stage: what its steps cost, and what was counted or predicted before they were measured."""
    if not run.stages:
        return element("p", "No stage was measured yet.", class_="note")
    full = full_cost(run.stages, run.num_blocks)
    rows = [_row(run, stage, full) for stage in run.stages]
    notes = [NOTE]
    if not predictions_fit(run):
        notes.append("planned.json is of other stages than this run's, and is not shown.")
    elif not run.planned:
        notes.append(HINT)
    return element(
        "div",
        table(HEAD, rows, caption="Every stage"),
        element("p", " ".join(notes), class_="note"),
    )


def predictions_fit(run: Run) -> bool:
    """Whether what was predicted is of the stages of the run's plan; true where nothing was."""
    if not run.planned or run.plan is None:
        return not run.planned
    predicted = [stage.blocks for stage in run.planned]
    followed = [len(stage.blocks) for stage in run.plan.stages]
    return predicted == followed


def _prediction(run: Run, stage: StageCost) -> Planned | None:
    """What was predicted of a stage; None of a search."""
    known = 0 <= stage.stage < len(run.planned)
    if stage.searching or not known or not predictions_fit(run):
        return None
    return run.planned[stage.stage]


def _row(run: Run, stage: StageCost, full: StageCost | None) -> list[str]:
    planned = _prediction(run, stage)
    # With --checkpointing auto the run itself has predicted, in its first step.
    known = {record.stage: record.memory for record in run.entered}
    memory = known.get(stage.stage)
    if planned is not None and planned.memory is not None:
        memory = planned.memory
    full_seconds = None if full is None else full.step_seconds
    full_flops = None if full is None else full.flops
    return [
        stage.name,
        f"{stage.steps:,}",
        f"{stage.blocks:.3g} of {run.num_blocks}",
        percent(stage.trainable),
        f"{stage.resolution:.4g} px",
        loss(stage.loss),
        duration(stage.step_seconds),
        DASH if planned is None else duration(planned.step_seconds),
        percent(ratio(stage.step_seconds, full_seconds)),
        percent(ratio(stage.flops, full_flops)),
        size(stage.memory),
        size(memory),
    ]
