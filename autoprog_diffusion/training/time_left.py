"""Time left of a run whose stages cost differently: FLOPs of every stage, scaled by the step times measured so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from autoprog_diffusion.growth.plan import GrowthPlan, Stage
from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.growth.units import Layout, front, trained_units

from .metrics import Metrics


# Shares of a unit's FLOPs: those of its forward pass, and with those of its input's gradient.
FORWARD = 1 / 3
CARRYING = 2 / 3


def full_unit_flops(counts: Mapping[str, Any], layout: Layout, blocks: Sequence[int]) -> dict[str, float]:
    """FLOPs of a step of every unit if it trains, from those of a step in which some blocks train.

    Args:
        counts: Name of a module -> operation -> FLOPs, as PyTorch's counter has them; names begin with the model's.
        layout: Units of the model.
        blocks: Indices of the blocks that trained.
    """
    own = {name.partition(".")[2]: sum(each.values()) for name, each in counts.items()}
    total = max(own.values(), default=0)
    shares = unit_shares(layout, blocks)
    found: dict[str, float] = {}
    for unit in layout.blocks:
        found[unit.name] = sum(module_flops(own, module) for module in unit.modules)
    rest = max(0.0, total - sum(found.values()))
    found = {name: flops / shares[name] for name, flops in found.items()}
    # What runs outside of the blocks, the inputs as a rule: it is little.
    return {**found, layout.outputs.name: rest}


def module_flops(own: Mapping[str, float], module: str) -> float:
    """FLOPs of a module; a list of modules, which is never called itself, has those of its members.

    Args:
        own: Name of a module that was called -> its FLOPs.
        module: Its name.
    """
    if module in own:
        return own[module]
    return sum(flops for name, flops in own.items() if name.rpartition(".")[0] == module)


def unit_shares(layout: Layout, blocks: Sequence[int]) -> dict[str, float]:
    """Share of its FLOPs that every unit needs in a stage.

    Args:
        layout: Units of the model.
        blocks: Indices of the blocks that train.
    """
    trained = {unit.name for unit in trained_units(layout, blocks)}
    frozen = {unit.name for unit in front(layout, blocks)}
    shares = {}
    for unit in layout.units:
        share = CARRYING
        if unit.name in trained:
            share = 1.0
        elif unit.name in frozen:
            share = FORWARD
        shares[unit.name] = share
    return shares


def stage_flops(stage: Stage, layout: Layout, units: Mapping[str, float]) -> float:
    """FLOPs of a step of a stage, from those of its units.

    Args:
        stage: The stage.
        layout: Units of the model.
        units: As `full_unit_flops` gives them.
    """
    shares = unit_shares(layout, stage.blocks)
    return sum(flops * shares[name] for name, flops in units.items())


def seconds_left(metrics: Metrics, plan: GrowthPlan, costs: Sequence[float]) -> float | None:
    """Seconds of the steps to come.

    Args:
        metrics: Of the steps done.
        plan: The stages.
        costs: FLOPs of a step of every stage, or anything in proportion to them.

    Returns:
        None before the second step.
    """
    measured = step_seconds(metrics)
    if not measured:
        return None
    ends = [*(stage.start for stage in plan.stages[1:]), plan.num_training_steps]
    left = 0.0
    for index, (stage, end) in enumerate(zip(plan.stages, ends)):
        steps = end - max(stage.start, len(metrics))
        if steps > 0:
            left += steps * stage_seconds(index, measured, costs)
    return left


def note_units(metrics: Metrics, growth: Growth, counts: Mapping[str, Any]) -> None:
    """Keep what every unit costs, from the first step that is counted; without effect afterwards.

    Args:
        metrics: Of the run.
        growth: Its growth object; one without units (vision transformers that grow in depth) is left aside.
        counts: As `full_unit_flops` takes them.
    """
    layout = getattr(growth, "layout", None)
    if isinstance(layout, Layout) and not metrics.units and not growth.searching:
        blocks = growth.plan.stages[growth.stage].blocks
        metrics.units = full_unit_flops(counts, layout, blocks)


def stage_costs(metrics: Metrics, growth: Growth) -> list[float]:
    """FLOPs of a step of every stage: counted where it has begun, else from its units and its resolution.

    Args:
        metrics: Of the steps done, at least one.
        growth: The growth object.
    """
    counted = {int(stage): flops for stage, flops in zip(metrics.rows["stage"], metrics.rows["flops"])}
    layout = getattr(growth, "layout", None)
    latest = max(counted)
    stages = growth.plan.stages
    costs = []
    for index, stage in enumerate(stages):
        flops = counted.get(index, counted[latest])
        if index not in counted and metrics.units and isinstance(layout, Layout):
            base = stage_flops(stages[latest], layout, metrics.units)
            flops *= stage_flops(stage, layout, metrics.units) / base
        if index not in counted and type(stage.resolution) is type(stages[latest].resolution):
            flops *= (stage.resolution / stages[latest].resolution) ** 2
        costs.append(float(flops))
    return costs


def tell_time_left(metrics: Metrics, growth: Growth) -> float | None:
    """Seconds of the steps to come, which are also kept for the summary when a stage has begun.

    Args:
        metrics: Of the steps done, at least one.
        growth: The growth object.
    """
    left = seconds_left(metrics, growth.plan, stage_costs(metrics, growth))
    note_prediction(metrics, left)
    return left


def step_seconds(metrics: Metrics) -> dict[int, float]:
    """Stage -> median seconds of its steps but the first, which warms up and counts where there is no other at all."""
    found: dict[int, list[float]] = {}
    columns = zip(metrics.rows["stage"], metrics.rows["seconds"], metrics.rows["searching"])
    for stage, seconds, searching in columns:
        if not searching:
            found.setdefault(int(stage), []).append(seconds)
    warm = {stage: each[1:] for stage, each in found.items() if len(each) > 1}
    return {stage: median(each) for stage, each in (warm or found).items()}


def stage_seconds(index: int, measured: Mapping[int, float], costs: Sequence[float]) -> float:
    """Seconds of a step of a stage: measured, or on the line through what was measured.

    With one stage measured, time is in proportion to the FLOPs. From two on, a part of the step does not depend on
    them; it is never negative.

    Args:
        index: Of the stage.
        measured: Stage -> seconds of a step.
        costs: FLOPs of a step of every stage.
    """
    if index in measured:
        return measured[index]
    points = [(costs[stage], seconds) for stage, seconds in measured.items()]
    last = points[-1]
    lowest = min(points)
    highest = max(points)
    proportional = last[1] * costs[index] / last[0] if last[0] else last[1]
    if highest[0] <= lowest[0] or highest[1] <= lowest[1]:
        return proportional
    slope = (highest[1] - lowest[1]) / (highest[0] - lowest[0])
    constant = lowest[1] - slope * lowest[0]
    return constant + slope * costs[index] if constant > 0 else proportional


def note_prediction(metrics: Metrics, left: float | None) -> None:
    """Keep what was predicted when a stage had its second step, for the summary.

    Args:
        metrics: Of the steps done.
        left: Seconds that were predicted for the rest.
    """
    stages = metrics.rows["stage"]
    second = len(stages) > 1 and stages[-1] == stages[-2] and (len(stages) == 2 or stages[-3] != stages[-1])
    if second and left is not None:
        metrics.predictions.append({"step": float(len(stages)), "seconds": left})


def prediction_sentence(metrics: Metrics) -> str | None:
    """How far the time left was from what the rest of the run took, from the second stage on; None without one."""
    seconds = metrics.rows["seconds"]
    errors = []
    for each in metrics.predictions[1:]:
        took = sum(seconds[int(each["step"]) :])
        if took > 0:
            errors.append(abs(each["seconds"] / took - 1))
    if not errors:
        return None
    return f"the time left was told within {max(errors):.0%} of what the rest took, from the second stage on."
