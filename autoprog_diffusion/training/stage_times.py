"""Seconds of the steps to come, from measured steps and the FLOPs of every stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median

from autoprog_diffusion.growth.plan import GrowthPlan, Stage


def key_of(stage: Stage) -> str:
    """What a stage costs depends on: which blocks train, the size of the images, and how many passes."""
    passes = "" if stage.accumulation is None else f", {stage.accumulation} passes"
    return f"{','.join(map(str, stage.blocks))} at {stage.resolution}{passes}"


def area(stage: Stage, other: Stage) -> float:
    """Pixels of a stage's images over those of another one's; 1 where they cannot be compared."""
    if type(stage.resolution) is not type(other.resolution):
        return 1.0
    return (stage.resolution / other.resolution) ** 2


def seconds_left(done: int, plan: GrowthPlan, measured: Mapping[int, float], costs: Sequence[float]) -> float | None:
    """Seconds of the steps to come.

    Args:
        done: Optimizer steps done.
        plan: The stages.
        measured: Stage -> seconds of a step.
        costs: FLOPs of a step of every stage, or anything in proportion to them.

    Returns:
        None where nothing is measured.
    """
    if not measured:
        return None
    left = 0.0
    end = plan.num_training_steps
    for index in reversed(range(len(plan.stages))):
        start = max(plan.stages[index].start, done)
        steps = max(0, end - start)
        left += steps * stage_seconds(
            index,
            measured,
            costs,
        )
        end = plan.stages[index].start
    return left


def measured(times: Mapping[int, Collection[float]]) -> dict[int, float]:
    """Stage -> median seconds of a step.

    The first step of a stage warms up, and counts only where no stage has another one.

    Args:
        times: Stage -> seconds of its latest steps.
    """
    warm: dict[int, Collection[float]] = {}
    for stage, seconds in times.items():
        _, *others = seconds
        if others:
            warm[stage] = others
    chosen = warm or times
    return {stage: median(seconds) for stage, seconds in chosen.items()}


def warm_up(firsts: Mapping[int, float], times: Mapping[int, float]) -> float:
    """Seconds that the first step of a stage takes longer, by the stages so far; that of a run has reasons of its own.

    Args:
        firsts: Stage -> seconds of its first step.
        times: Stage -> seconds of another one.
    """
    longer = []
    for stage, first in firsts.items():
        if stage in times:
            longer.append(first - times[stage])
    _, *others = longer or [0.0]
    if not others:
        return 0.0
    return max(0.0, median(others))


def stage_seconds(index: int, measured: Mapping[int, float], costs: Sequence[float]) -> float:
    """Seconds of a step of a stage: measured, or by the FLOPs from what was measured.

    With one stage measured, time is in proportion to the FLOPs. From two on, a part of the step does not depend on
    them: the line through the cheapest and the most expensive one, if it rises and that part is not negative.

    Args:
        index: Of the stage.
        measured: Stage -> seconds of a step.
        costs: FLOPs of a step of every stage.
    """
    if index in measured:
        return measured[index]
    points = []
    for stage, seconds in measured.items():
        points.append((costs[stage], seconds))
    flops, seconds = points[-1]
    proportional = seconds
    if flops:
        proportional = seconds * costs[index] / flops
    cheap, least = min(points)
    expensive, most = max(points)
    if expensive <= cheap or most <= least:
        return proportional
    slope = (most - least) / (expensive - cheap)
    constant = least - slope * cheap
    if constant <= 0:
        return proportional
    return constant + slope * costs[index]
