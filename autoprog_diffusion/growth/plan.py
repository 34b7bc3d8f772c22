"""The growth plan: how much is trained, and at which resolution, from which optimizer step. Pure data, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import PlanError
from .values import JSON, Resolution, as_resolution, check_increasing_resolutions


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
        accumulation: Forward passes of an optimizer step; None leaves their number to the loop.
    """

    start: int
    blocks: tuple[int, ...]
    resolution: Resolution = 1.0
    stride: int | None = None
    accumulation: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", as_resolution(self.resolution, PlanError))
        if self.stride is not None and _as_int(self.stride) < 1:
            raise PlanError(
                f"stride {self.stride} is not allowed: use a number of pixels, or None for the model's own."
            )
        if self.accumulation is not None and _as_int(self.accumulation) < 1:
            raise PlanError(
                f"accumulation {self.accumulation} is not allowed: use a number of forward passes of at least 1, or "
                "None for the loop's own."
            )

    def passes(self, own: int) -> int:
        """Forward passes of an optimizer step.

        Args:
            own: Those of the loop.
        """
        return self.accumulation or own

    def to_dict(self) -> JSON:
        """The stage as plain JSON types, without what is None: older plans do not have it."""
        values = {**asdict(self), "blocks": list(self.blocks)}
        return {key: value for key, value in values.items() if value is not None}

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
            accumulation=values.get("accumulation"),
        )


@dataclass(frozen=True)
class GrowthPlan:
    """A schedule of stages for a model of `num_blocks` blocks and a run of `num_training_steps` steps.

    Stages may freeze blocks, open blocks, or do both (windows); the resolution never falls and the stride never rises.

    Raises:
        PlanError: The stages do not follow one another, or do not fit the number of blocks or steps.

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

    def steps_between(self, first: int, last: int) -> list[int]:
        """How many of the optimizer steps from `first` to before `last` every stage trains.

        Example:
            >>> plan = GrowthPlan(4, 100, (Stage(0, (0,)), Stage(50, (0, 1, 2, 3))))
            >>> plan.steps_between(20, 60)
            [30, 10]
        """
        ends = [*(stage.start for stage in self.stages[1:]), self.num_training_steps]
        return [max(0, min(end, last) - max(stage.start, first)) for stage, end in zip(self.stages, ends, strict=True)]

    @property
    def freezes(self) -> bool:
        """Whether some stage freezes a block that the one before it trains."""
        return any(_lost_blocks(self.stages))

    @property
    def opens(self) -> bool:
        """Whether some stage trains a block that the one before it does not."""
        return any(_lost_blocks(self.stages[::-1]))

    @property
    def monotone(self) -> bool:
        """Whether blocks only freeze, or only open; windows do both."""
        return not (self.freezes and self.opens)

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

    def extended(self, num_training_steps: int, at_step: int, *, shortest: int = 1) -> GrowthPlan:
        """The plan of a run that goes on to another length after `at_step` steps.

        Stages that have begun stay. Those to come keep their place in what is left of the run. In a run that is made
        shorter, those that no longer fit join the one before them, or are left out if that one has begun.

        Args:
            num_training_steps: Optimizer steps of the whole run, those done included.
            at_step: Optimizer steps done.
            shortest: Steps before a stage to come but the last (fewer only where there were fewer), for a search.

        Raises:
            PlanError: More steps are done.

        Example:
            >>> plan = GrowthPlan(2, 100, (Stage(0, (0, 1)), Stage(25, (0,)), Stage(75, ())))
            >>> [stage.start for stage in plan.extended(150, at_step=50).stages]
            [0, 25, 100]
        """
        if num_training_steps < at_step:
            raise PlanError(
                f"{at_step} steps are done, so the run cannot end after {num_training_steps}: use at least {at_step}."
            )
        current = self.stage_at(at_step)
        begun = self.stages[: current + 1]
        coming: list[Stage] = []
        before = at_step
        for stage in self.stages[current + 1 :]:
            # Not begun, so at_step lies before the old plan's end.
            moved = (stage.start - at_step) * (num_training_steps - at_step) // (self.num_training_steps - at_step)
            start = at_step + max(1, moved)
            distance = start - (coming[-1].start if coming else at_step)
            needed = 1 if stage is self.stages[-1] else min(shortest, stage.start - before)
            fits = start < num_training_steps and distance >= needed
            before = stage.start
            if fits:
                coming.append(replace(stage, start=start))
            elif coming:
                coming[-1] = join(coming[-1], stage)
        # A stage may have begun at the very step at which the run is now to end.
        length = max(num_training_steps, begun[-1].start + 1)
        return GrowthPlan(self.num_blocks, length, (*begun, *coming))


def join(stage: Stage, later: Stage) -> Stage:
    """One stage in place of two neighbours: it trains what either of them trains, in all else as the later one."""
    blocks = tuple(sorted({*stage.blocks, *later.blocks}))
    return replace(later, start=stage.start, blocks=blocks)


def join_stages(stages: Sequence[Stage], num_training_steps: int) -> tuple[Stage, ...]:
    """Stages that a run has room for: one without a step of its own joins the one before it.

    Args:
        stages: The first one begins at 0; starts do not decrease, and may lie beyond the end of the run.
        num_training_steps: Optimizer steps of the run.
    """
    fitting = list(stages[:1])
    for stage in stages[1:]:
        if fitting[-1].start < stage.start < num_training_steps:
            fitting.append(stage)
        else:
            fitting[-1] = join(fitting[-1], stage)
    return tuple(fitting)


def drop_repeats(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages without those that train what the stage before them trains."""
    different = list(stages[:1])
    for stage in stages[1:]:
        if replace(stage, start=different[-1].start) != different[-1]:
            different.append(stage)
    return tuple(different)


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
        if not all(block in range(plan.num_blocks) for block in stage.blocks):
            raise PlanError(
                f"stage {index} trains blocks {stage.blocks}, but the model has blocks 0 to {plan.num_blocks - 1}."
            )
    check_increasing_resolutions(tuple(stage.resolution for stage in plan.stages), PlanError)
    strides = [stage.stride for stage in plan.stages]
    if strides != sorted(strides, key=lambda stride: stride or 0, reverse=True):
        raise PlanError(
            f"strides {strides} rise (None is the model's own, the smallest): let none be larger than before."
        )


def _lost_blocks(stages: Sequence[Stage]) -> list[list[int]]:
    """For every two neighbours the sorted blocks that the first stage trains and the second does not."""
    return [sorted(set(early.blocks).difference(late.blocks)) for early, late in pairwise(stages)]


def _as_int(value: Any) -> int:
    """The value, if it is a whole number; raises `PlanError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"not a growth plan: {value!r} stands where a whole number belongs.")
    return value
