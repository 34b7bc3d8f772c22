"""The summary of a stage: what it trained and what it cost, for the table, growth.json and the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageSummary:
    """One row of the table at the end of a run: a stage, or the search at its start.

    Attributes:
        stage: Index of the stage.
        searching: Whether a supernet trained. Blocks, resolution and FLOPs are then means over its sub-networks.
        steps: Number of optimizer steps.
        blocks: Number of blocks that trained.
        trainable: Share of the parameters that trained, in [0, 1].
        resolution: Side of the images in pixels.
        step_seconds: Median wall time of its steps but the first, which warms up; None where there is no other.
        seconds: Wall time of all steps, and of the evaluations of candidates.
        cpu_seconds: CPU time of this process for the same.
        flops: Mean FLOPs of an optimizer step on one process, forward and backward.
        memory: Peak memory in bytes: allocated on the GPU, else resident.
        loss: Mean training loss of the last quarter of the stage.
    """

    stage: int
    searching: bool
    steps: int
    blocks: float
    trainable: float
    resolution: float
    step_seconds: float | None
    seconds: float
    cpu_seconds: float
    flops: float
    memory: int
    loss: float
