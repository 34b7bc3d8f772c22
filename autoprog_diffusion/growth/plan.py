"""The growth plan: how much is trained, and at which resolution, from which optimizer step. Pure data, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from .config import JSON, GrowthConfig, Order, Resolution, as_resolution, check_increasing_resolutions
from .errors import PlanError


PLAN_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
        start: First optimizer step (counted from 0) that trains in this stage.
        blocks: Sorted indices, in forward order, of the blocks that train; with none only the output head does.
        resolution: Fraction (float, up to 1.0) of the data's size, or pixels (int).
        stride: Pixels from one token to the next in the first projection, for a host that re-tokenizes (As-ViT); None
            is the model's own, the smallest.
    """

    start: int
    blocks: tuple[int, ...]
    resolution: Resolution = 1.0
    stride: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", as_resolution(self.resolution, PlanError))
        if self.stride is not None and _as_int(self.stride) < 1:
            raise PlanError(
                f"stride {self.stride} is not allowed: use a number of pixels, or None for the model's own."
            )

    def to_dict(self) -> JSON:
        """The stage as plain JSON types, without a stride of None: plans older than strides have none."""
        values = {**asdict(self), "blocks": list(self.blocks)}
        if self.stride is None:
            del values["stride"]
        return values

    @classmethod
    def from_dict(cls, values: JSON) -> Stage:
        """The stage that `to_dict` wrote.

        Raises:
            PlanError: A value is not allowed.
            KeyError: A key is missing.
        """
        return cls(
            start=_as_int(values["start"]),
            blocks=tuple(map(_as_int, values["blocks"])),
            resolution=values.get("resolution", 1.0),
            stride=values.get("stride"),
        )


@dataclass(frozen=True)
class GrowthPlan:
    """A monotone schedule of stages for a model of `num_blocks` blocks and a run of `num_training_steps` steps.

    Either no block that trains ever freezes, or no block that is frozen ever opens; the resolution never falls and the
    stride never rises.

    Raises:
        PlanError: The stages are not monotone, or do not fit the number of blocks or steps.

    Example:
        >>> plan = GrowthPlan(4, 100, (Stage(0, (0,)), Stage(50, (0, 1, 2, 3))))
        >>> plan.stage_at(49), plan.stage_at(50)
        (0, 1)
    """

    num_blocks: int
    num_training_steps: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        _check_plan(self)

    def stage_at(self, step: int) -> int:
        """Index of the stage that trains at optimizer step `step` (counted from 0)."""
        return sum(stage.start <= step for stage in self.stages) - 1

    @property
    def freezes(self) -> bool:
        """Whether some stage trains fewer blocks than the one before it."""
        return any(_lost_blocks(self.stages))

    def to_dict(self) -> JSON:
        """The plan as plain JSON types."""
        stages = [stage.to_dict() for stage in self.stages]
        return {"plan_version": PLAN_VERSION, **asdict(self), "stages": stages}

    @classmethod
    def from_dict(cls, values: JSON) -> GrowthPlan:
        """The plan that `to_dict` wrote.

        Raises:
            PlanError: A key is missing, the version is unknown, or the stages are not a valid plan.
        """
        version = values.get("plan_version") if isinstance(values, dict) else None
        if version != PLAN_VERSION:
            raise PlanError(f"plan_version {version!r} is not known: this library reads {PLAN_VERSION}.")
        try:
            return cls(
                num_blocks=_as_int(values["num_blocks"]),
                num_training_steps=_as_int(values["num_training_steps"]),
                stages=tuple(map(Stage.from_dict, values["stages"])),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"not a growth plan: missing or malformed {error}.") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, one stage a line, to be read, edited and passed back."""
        values = self.to_dict()
        stages = ",\n".join(f"    {json.dumps(stage)}" for stage in values.pop("stages"))
        head = json.dumps(values, indent=2).removesuffix("\n}")
        Path(path).write_text(f'{head},\n  "stages": [\n{stages}\n  ]\n}}\n', encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> GrowthPlan:
        """Read a plan from a file that `save` wrote, or from the `plan` entry of a run's `growth.json`.

        Raises:
            PlanError: The file is missing, not JSON, or not a valid plan.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"cannot read the growth plan {path}: {error}.") from error
        except ValueError as error:  # not JSON, or not text at all
            raise PlanError(f"the growth plan {path} is not JSON: {error}.") from error
        if isinstance(values, dict):
            values = values.get("plan", values)
        return cls.from_dict(values)

    def rescaled(self, num_training_steps: int) -> GrowthPlan:
        """The same stages for a run of another length, their starts moved in proportion.

        Raises:
            PlanError: The run is too short to hold every stage.
        """
        stages = []
        for stage in self.stages:
            start = stage.start * num_training_steps // self.num_training_steps
            stages.append(replace(stage, start=start))
        return GrowthPlan(self.num_blocks, num_training_steps, tuple(stages))


def stage_starts(num_stages: int, boundaries: Sequence[float] | None, num_training_steps: int) -> list[int]:
    """First optimizer step of every stage.

    Args:
        num_stages: Number of stages.
        boundaries: First step of every stage but the first, in steps (int) or fractions of the run (float); `None`
            spaces the stages evenly.
        num_training_steps: Optimizer steps of the run.

    Raises:
        PlanError: The run has fewer steps than stages.
    """
    if num_training_steps < num_stages:
        raise PlanError(
            f"num_training_steps={num_training_steps} is shorter than num_stages={num_stages}: "
            "every stage needs at least one step."
        )
    if boundaries is None:
        return [num_training_steps * k // num_stages for k in range(num_stages)]
    starts = [0]
    for bound in boundaries:
        if isinstance(bound, float):
            # The rounding error of 0.29 * 100 must not cost a step.
            bound = math.floor(bound * num_training_steps + 1e-9)
        starts.append(bound)
    return starts


def fixed_plan(config: GrowthConfig, num_blocks: int, num_training_steps: int) -> GrowthPlan:
    """The fixed schedule of a configuration: linear growth from `min_trainable` to the full model, or back.

    For 28 blocks and the defaults, which freeze, 28, 21, 14, 7 blocks train. With `direction="unfreeze"`
    it is AutoProg-Zero's linear schedule, 7, 14, 21, 28.

    Raises:
        PlanError: The run has fewer steps than stages, a boundary lies beyond the last step, or two neighbouring
            stages would train the same blocks at the same resolution (fewer blocks than stages).
    """
    count = config.num_stages
    low = config.min_trainable
    starts = stage_starts(count, config.boundaries, num_training_steps)
    fractions = [low + (1 - low) * k / (count - 1) for k in range(count - 1)]
    # Exactly all: a rounded fraction might leave a block out.
    fractions.append(1.0)
    if config.freezes:
        fractions.reverse()
    stages = []
    for start, fraction, resolution in zip(starts, fractions, config.resolutions or (1.0,) * count):
        stages.append(Stage(start, select_blocks(config.order, num_blocks, fraction, low), resolution))
    for index, (early, late) in enumerate(pairwise(stages)):
        if replace(early, start=late.start) == late:
            raise PlanError(
                f"stages {index} and {index + 1} of num_stages={count} would both train {len(late.blocks)} of "
                f"{num_blocks} blocks at resolution {late.resolution}: use fewer stages, a smaller min_trainable "
                f"(now {low}), or let resolutions grow."
            )
    return GrowthPlan(num_blocks, num_training_steps, tuple(stages))


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


def check_plan_fits(plan: GrowthPlan, blocks: list[str], num_training_steps: int, rows: int | None) -> None:
    """Refuse a plan that was made for another model or run.

    Args:
        plan: The plan.
        blocks: Names of the model's growable blocks.
        num_training_steps: Optimizer steps of the run.
        rows: Stages the stage embedding has rows for; None without one.

    Raises:
        PlanError: The number of blocks, steps or stages differs, or the plan re-tokenizes.
    """
    strides = [stage.stride for stage in plan.stages]
    if set(strides) != {None}:
        raise PlanError(
            f"the plan re-tokenizes (strides {strides}), which only the patch projection of a vision transformer can: "
            "leave the strides out, or follow the plan with autoprog_diffusion.vit."
        )
    if plan.num_blocks != len(blocks):
        raise PlanError(f"the plan is for a model of {plan.num_blocks} blocks, this one has {len(blocks)}: {blocks}.")
    if plan.num_training_steps != num_training_steps:
        raise PlanError(
            f"the plan is for {plan.num_training_steps} steps, the run has {num_training_steps}: use "
            f"plan.rescaled({num_training_steps}) or change the run."
        )
    if rows is not None and len(plan.stages) != rows:
        raise PlanError(
            f"the plan has {len(plan.stages)} stages, the stage embedding num_stages={rows}: give GrowthConfig the "
            "plan's number of stages."
        )


def _check_plan(plan: GrowthPlan) -> None:
    """Raise `PlanError` where stages do not fit the model or the run, or do not follow one another."""
    if not plan.stages:
        raise PlanError("a growth plan needs at least one stage.")
    starts = [stage.start for stage in plan.stages]
    if starts[0] != 0 or starts != sorted(set(starts)):
        raise PlanError(f"stage starts {starts} must begin at 0 and increase.")
    if starts[-1] >= plan.num_training_steps:
        raise PlanError(
            f"the last stage starts at step {starts[-1]}, but the run has {plan.num_training_steps} steps "
            f"(0 to {plan.num_training_steps - 1}): lower the boundaries or train longer."
        )
    for index, stage in enumerate(plan.stages):
        if list(stage.blocks) != sorted(set(stage.blocks)):
            raise PlanError(f"stage {index} must name its blocks once each, in order: {stage.blocks}.")
        if not set(range(plan.num_blocks)).issuperset(stage.blocks):
            raise PlanError(
                f"stage {index} trains blocks {stage.blocks}, but the model has blocks 0 to {plan.num_blocks - 1}."
            )
    _check_one_direction(plan.stages)
    check_increasing_resolutions(tuple(stage.resolution for stage in plan.stages), PlanError)
    strides = [stage.stride for stage in plan.stages]
    if strides != sorted(strides, key=lambda stride: stride or 0, reverse=True):
        raise PlanError(f"strides {strides} rise (None is the model's own, the smallest): growth is monotone.")


def _check_one_direction(stages: Sequence[Stage]) -> None:
    """Raise `PlanError` where some blocks freeze and others open."""
    closing = _lost_blocks(stages)
    opening = _lost_blocks(stages[::-1])[::-1]
    if any(closing) and any(opening):
        closed = next(filter(None, closing))
        index = closing.index(closed)
        opener = opening.index(next(filter(None, opening))) + 1
        raise PlanError(
            f"growth is monotone, but blocks {closed} train in stage {index} and not in stage {index + 1}, "
            f"while stage {opener} opens blocks: add them to the later stage, or let no stage open any."
        )


def _lost_blocks(stages: Sequence[Stage]) -> list[list[int]]:
    """For every two neighbours the sorted blocks that the first stage trains and the second does not."""
    return [sorted(set(early.blocks).difference(late.blocks)) for early, late in pairwise(stages)]


def _as_int(value: Any) -> int:
    """The value, if it is a whole number; raises `PlanError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"not a growth plan: {value!r} stands where a whole number belongs.")
    return value
