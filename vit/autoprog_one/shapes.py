"""Shapes a growing vision transformer goes through: the grid, a stage's candidates, the plan as decided so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import nn

from autoprog_diffusion.growth.backends import accelerate as host
from autoprog_diffusion.growth.backends.fsdp2 import is_sharded
from autoprog_diffusion.growth.errors import OrderError, PlanError
from autoprog_diffusion.growth.plan import GrowthPlan, Stage, stage_starts

from ..models import size_multiple
from ..resolution import image_size
from ..retokenize import Retokenizer
from .config import ViTGrowthConfig
from .groups import BlockGroup, depth_grid, resolution_grid, split_depths


@dataclass(frozen=True, order=True)
class Shape:
    """A sub-network: how many blocks run, and on images of which side in pixels."""

    depth: int
    resolution: int


@dataclass(frozen=True)
class Grid:
    """The shapes a run can go through.

    Attributes:
        depths: Total depth of every stage of the linear schedule.
        resolutions: Image side of every stage of the linear schedule.
        splits: Total depth -> depth of every group.
        sizes: Blocks of every full group.
    """

    depths: tuple[int, ...]
    resolutions: tuple[int, ...]
    splits: dict[int, tuple[int, ...]]
    sizes: tuple[int, ...]

    @property
    def full(self) -> Shape:
        """The whole model."""
        return Shape(self.depths[-1], self.resolutions[-1])

    def shape(self, stage: int) -> Shape:
        """The shape of a stage in the linear schedule."""
        return Shape(self.depths[stage], self.resolutions[stage])

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Indices, in forward order over all groups, of the blocks of a sub-network of total `depth`."""
        starts = [sum(self.sizes[:group]) for group in range(len(self.sizes))]
        return tuple(
            start + index for start, count in zip(starts, self.splits[depth], strict=True) for index in range(count)
        )


def make_grid(config: ViTGrowthConfig, model: nn.Module, groups: Sequence[BlockGroup]) -> Grid:
    """The grid of a configuration for a model.

    Raises:
        PlanError: The model has fewer blocks than stages.
        ConfigError: The patches do not divide a resolution.
    """
    sizes = tuple(len(group) for group in groups)
    depths = depth_grid(config, sizes)
    ladder = sorted(set(depths))
    return Grid(
        tuple(depths),
        tuple(resolution_grid(config, image_size(model), size_multiple(model))),
        dict(zip(ladder, split_depths(ladder, sizes))),
        sizes,
    )


def list_candidates(grid: Grid, stage: int, current: Shape | None) -> list[Shape]:
    """Shapes a stage may choose from, cheapest first.

    Stage 0 has the smallest, middle and largest depth and resolution of the grid; a later one up to three depths from
    one step above the current, and the current and the next resolution; the last stage is the full model (released
    code of arXiv 2203.14509).
    """
    count = len(grid.depths)
    if stage == count - 1:
        return [grid.full]
    if current is None:
        picks = (0, count // 2, count - 1)
        depths, resolutions = {grid.depths[i] for i in picks}, {grid.resolutions[i] for i in picks}
    else:
        deeper = [depth for depth in sorted(set(grid.depths)) if depth > current.depth]
        larger = [size for size in sorted(set(grid.resolutions)) if size > current.resolution]
        depths, resolutions = set(deeper[:3]) or {current.depth}, {current.resolution, *larger[:1]}
    return sorted(Shape(depth, resolution) for depth in depths for resolution in resolutions)


def first_plan(config: ViTGrowthConfig, grid: Grid, num_training_steps: int) -> GrowthPlan:
    """The plan a run starts with: the linear schedule; with a search, the smallest shape until one is decided.

    Raises:
        PlanError: The run is too short for its stages or supernet phases, or two stages of a fixed schedule are equal.
    """
    starts = stage_starts(config.num_stages, config.boundaries, num_training_steps)
    shapes = [grid.shape(stage) for stage in range(config.num_stages)]
    strides = config.strides or (None,) * config.num_stages
    for index, (early, late) in enumerate(pairwise(shapes)):
        if early == late and strides[index] == strides[index + 1]:
            raise PlanError(
                f"stages {index} and {index + 1} would both train {late.depth} blocks at {late.resolution} pixels: "
                f"use fewer stages, or a smaller min_depth (now {config.min_depth}) or first resolution."
            )
    if config.search != "fixed":
        shapes[:-1] = [shapes[0]] * (len(shapes) - 1)
    stages = tuple(
        Stage(start, grid.blocks(shape.depth), shape.resolution, stride)
        for start, shape, stride in zip(starts, shapes, strides, strict=True)
    )
    plan = GrowthPlan(sum(grid.sizes), num_training_steps, stages)
    if config.search == "one_shot":
        for stage in range(config.num_stages - 1):
            search_length(config, plan, stage)
    return plan


def with_shape(plan: GrowthPlan, grid: Grid, stage: int, shape: Shape) -> GrowthPlan:
    """The plan with a stage decided; later undecided stages keep training the same until they are decided too."""
    last = len(plan.stages) - 1
    stages = [
        replace(entry, blocks=grid.blocks(shape.depth), resolution=shape.resolution) if stage <= i < last else entry
        for i, entry in enumerate(plan.stages)
    ]
    return replace(plan, stages=tuple(stages))


def search_length(config: ViTGrowthConfig, plan: GrowthPlan, stage: int) -> int:
    """Optimizer steps of the supernet phase at the start of a stage.

    Raises:
        PlanError: It would fill the stage.
    """
    length = plan.stages[stage + 1].start - plan.stages[stage].start
    steps = config.search_steps
    steps = max(1, round(steps * length)) if isinstance(steps, float) else steps
    if steps >= length:
        raise PlanError(
            f"search_steps={config.search_steps} takes {steps} of the {length} steps of stage {stage}, which leaves "
            'none to train what was chosen: search less, train longer, or use search="fixed".'
        )
    return steps


def find_tokens(config: ViTGrowthConfig, model: nn.Module, grid: Grid, projection: str | None) -> Retokenizer | None:
    """What changes the model's stride, where the configuration asks for it.

    Raises:
        RetokenError: The model cannot be re-tokenized, or not with one of the strides.
        PlanError: A stride does not divide its stage's images, or the last one is not the model's own.
    """
    if config.strides is None:
        return None
    tokens = Retokenizer(model, projection)
    for stage, (stride, side) in enumerate(zip(config.strides, grid.resolutions, strict=True)):
        if side % tokens.check(stride):
            raise PlanError(f"stage {stage}: a stride of {stride} pixels does not divide its images of {side} pixels.")
    if tokens.check(config.strides[-1]) != tokens.native:
        raise PlanError(f"strides={config.strides} must end with the model's own, {tokens.native} or None.")
    return tokens


def check_backend(accelerator: Any, model: nn.Module) -> None:
    """Refuse a backend that splits the weights that growth moves between blocks.

    Raises:
        OrderError: The accelerator runs neither one process nor DistributedDataParallel, or parameters are sharded.
    """
    kind = host.backend(accelerator)
    if kind not in host.SUPPORTED or is_sharded(model):
        raise OrderError(
            f"distributed_type={kind} cannot grow in depth: weights and optimizer state move between blocks, which "
            "sharding splits over ranks. Use one process or DistributedDataParallel."
        )
