"""The fixed schedule of a configuration: which blocks its stages train, and the stages that a run has room for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .choices import Order
from .config import GrowthConfig
from .errors import PlanError
from .plan import GrowthPlan, Stage, drop_repeats, join_stages
from .windows import window_blocks


def stage_starts(num_stages: int, boundaries: Sequence[float] | None, num_training_steps: int) -> list[int]:
    """First optimizer step of every stage; in a short run several may share a start, or begin after the end.

    Args:
        num_stages: Number of stages.
        boundaries: First step of every stage but the first, in steps (int) or fractions of the run (float); `None`
            spaces the stages evenly.
        num_training_steps: Optimizer steps of the run.

    Raises:
        PlanError: The run has no step.
    """
    if num_training_steps < 1:
        raise PlanError(f"num_training_steps={num_training_steps} is not allowed: train for at least one step.")
    if boundaries is None:
        return [num_training_steps * k // num_stages for k in range(num_stages)]
    starts = [0]
    for bound in boundaries:
        if isinstance(bound, float):
            # The rounding error of 0.29 * 100 must not cost a step.
            bound = math.floor(bound * num_training_steps + 1e-9)
        starts.append(bound)
    return starts


def fixed_stages(
    config: GrowthConfig, num_blocks: int, starts: Sequence[int], sizes: Sequence[int] | None = None
) -> list[Stage]:
    """The `num_stages` stages of the fixed schedule as configured, whether a run has room for them or not.

    Args:
        config: With the number of stages and what they train.
        num_blocks: Number of blocks of the model.
        starts: First optimizer step of every stage.
        sizes: Number of parameters of every block, by which windows are cut; None takes all blocks for equal.
    """
    count = config.num_stages
    resolutions = config.resolutions or (1.0,) * count
    if config.direction == "window":
        windows = window_blocks(config, num_blocks, sizes) * config.sweeps
        stages = [Stage(*parts) for parts in zip(starts, windows, resolutions, strict=True)]
        return with_accumulations(stages, config)
    low = config.min_trainable
    fractions = [low + (1 - low) * k / (count - 1) for k in range(count - 1)]
    # Exactly all: a rounded fraction might leave a block out.
    fractions.append(1.0)
    if config.freezes:
        fractions.reverse()
    stages = []
    for start, fraction, resolution in zip(starts, fractions, resolutions, strict=True):
        blocks = select_blocks(config.order, num_blocks, fraction, low)
        stages.append(Stage(start, blocks, resolution))
    return with_accumulations(stages, config)


def with_accumulations(stages: list[Stage], config: GrowthConfig) -> list[Stage]:
    """Stages with the forward passes that the configuration gives each of them.

    Args:
        stages: Without.
        config: Of the run.
    """
    if config.accumulations is None:
        return stages
    return [replace(stage, accumulation=passes) for stage, passes in zip(stages, config.accumulations, strict=True)]


def fixed_plan(
    config: GrowthConfig, num_blocks: int, num_training_steps: int, sizes: Sequence[int] | None = None
) -> GrowthPlan:
    """The fixed schedule of a configuration: linear growth from `min_trainable` to the full model, back, or windows.

    For 28 blocks and the defaults, which freeze, 28, 21, 14, 7 blocks train. With `direction="unfreeze"`
    it is AutoProg-Zero's linear schedule, 7, 14, 21, 28.

    Stages that do not fit are merged: those without a step of their own in the run, and neighbours that would train
    the same (fewer blocks than stages). A merged stage trains what any of its stages trains.

    Args:
        config: How many blocks train, and when.
        num_blocks: Number of blocks of the model.
        num_training_steps: Optimizer steps of the run.
        sizes: Number of parameters of every block, by which windows are cut; None takes all blocks for equal.

    Raises:
        PlanError: The run has no step.
    """
    starts = stage_starts(config.num_stages, config.boundaries, num_training_steps)
    stages = fixed_stages(config, num_blocks, starts, sizes)
    fitting = drop_repeats(join_stages(stages, num_training_steps))
    return GrowthPlan(num_blocks, num_training_steps, fitting)


def select_blocks(order: Order, num_blocks: int, fraction: float, min_trainable: float = 0.25) -> tuple[int, ...]:
    """Indices of the blocks that train when `fraction` of them does; a larger fraction always holds a smaller one's.

    `interleaved` is the paper's rule, index mod L < l, with L = round(1 / min_trainable) levels and l = fraction * L;
    where l is not whole, the first blocks of the next residue class join (our reading of the paper's intent: its
    released code matches block names by substring and so trains 20 of 28 blocks at level 2 instead of 14).

    Example:
        >>> select_blocks("interleaved", 8, 0.5)
        (0, 1, 4, 5)
        >>> select_blocks("suffix", 8, 0.5)
        (4, 5, 6, 7)
    """
    # The tolerance keeps a rounding error from adding a block.
    count = min(num_blocks, math.ceil(fraction * num_blocks - 1e-9))
    if order == "prefix":
        return tuple(range(count))
    if order == "suffix":
        return tuple(range(num_blocks - count, num_blocks))
    levels = max(1, round(1 / min_trainable))
    complete = math.floor(fraction * levels + 1e-9)
    chosen = [index for index in range(num_blocks) if index % levels < complete]
    if complete < levels:
        next_class = range(complete, num_blocks, levels)
        share = fraction * levels - complete
        chosen += next_class[: math.ceil(share * len(next_class) - 1e-9)]
    return tuple(sorted(chosen))
