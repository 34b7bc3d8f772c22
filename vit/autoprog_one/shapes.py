"""Shapes a growing vision transformer goes through: the grid, a stage's candidates, the first plan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from autoprog_diffusion.growth.errors import PlanError
from autoprog_diffusion.growth.fixed import stage_starts
from autoprog_diffusion.growth.plan import GrowthPlan, Stage, drop_repeats, join, join_stages

from ..models import size_multiple
from ..resolution import image_size
from .config import Ints, ViTGrowthConfig
from .groups import BlockGroup, depth_grid, resolution_grid, split_depths


@dataclass(frozen=True, order=True)
class Shape:
    """A sub-network.

    Attributes:
        depth: Blocks that run.
        resolution: Side of its images in pixels.
    """

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

    depths: Ints
    resolutions: Ints
    splits: dict[int, Ints]
    sizes: Ints

    @property
    def full(self) -> Shape:
        """The whole model."""
        return self.shape(-1)

    def shape(self, stage: int) -> Shape:
        """The shape of a stage in the linear schedule."""
        return Shape(self.depths[stage], self.resolutions[stage])

    def blocks(self, depth: int) -> Ints:
        """Indices, in forward order over all groups, of the blocks of a sub-network of total `depth`."""
        blocks: list[int] = []
        start = 0
        for size, count in zip(self.sizes, self.splits[depth], strict=True):
            blocks += range(start, start + count)
            start += size
        return tuple(blocks)


def make_grid(config: ViTGrowthConfig, model: nn.Module, groups: Sequence[BlockGroup]) -> Grid:
    """The grid of a configuration for a model.

    Args:
        config: Of the run.
        model: The bare model; it says how large its images are.
        groups: Its block groups.

    Raises:
        PlanError: The model has fewer blocks than stages.
        ConfigError: The patches do not divide a resolution.
    """
    sizes = tuple(len(group) for group in groups)
    depths = depth_grid(config, sizes)
    resolutions = resolution_grid(config, image_size(model), size_multiple(model))
    different = sorted(set(depths))
    splits = split_depths(different, sizes)
    return Grid(
        depths=tuple(depths),
        resolutions=tuple(resolutions),
        splits=dict(zip(different, splits)),
        sizes=sizes,
    )


def list_candidates(grid: Grid, stage: int, current: Shape | None) -> list[Shape]:
    """Shapes a stage may choose from, cheapest first (released code of arXiv 2203.14509).

    Stage 0 has the smallest, middle and largest depth and resolution of the grid. A later one has up to three depths
    from one step above the current, and the current and the next resolution. The last stage is the full model.

    Args:
        grid: Shapes of the run.
        stage: Index of the stage.
        current: The shape that trained before it; None in stage 0.
    """
    count = len(grid.depths)
    if stage == count - 1:
        return [grid.full]
    if current is None:
        picked = [grid.shape(0), grid.shape(count // 2), grid.full]
        depths = {shape.depth for shape in picked}
        resolutions = {shape.resolution for shape in picked}
    else:
        deeper = sorted(depth for depth in set(grid.depths) if depth > current.depth)
        larger = [size for size in grid.resolutions if size > current.resolution]
        depths = set(deeper[:3]) or {current.depth}
        resolutions = {current.resolution, *larger[:1]}
    return sorted(Shape(*pair) for pair in itertools.product(depths, resolutions))


def first_plan(config: ViTGrowthConfig, grid: Grid, num_training_steps: int) -> GrowthPlan:
    """The plan a run starts with: the linear schedule; with a search, the smallest shape until one is decided.

    Stages that do not fit are merged, as in `growth.fixed.fixed_plan`; with `one_shot` also those that their supernet
    phase would fill.

    Args:
        config: Of the run.
        grid: Shapes of the run.
        num_training_steps: Optimizer steps of the run.

    Raises:
        PlanError: The run has no step.
    """
    count = config.num_stages
    starts = stage_starts(count, config.boundaries, num_training_steps)
    strides = config.strides or (None,) * count
    linear = []
    for index, (start, stride) in enumerate(zip(starts, strides, strict=True)):
        shape = grid.shape(index)
        stage = Stage(
            start,
            blocks=grid.blocks(shape.depth),
            resolution=shape.resolution,
            stride=stride,
        )
        linear.append(stage)
    stages = drop_repeats(join_stages(linear, num_training_steps))
    if config.search == "one_shot":
        stages = _searchable(config, stages)
    if config.search != "fixed":
        smallest = grid.shape(0)
        blocks = grid.blocks(smallest.depth)
        undecided = [replace(stage, blocks=blocks, resolution=smallest.resolution) for stage in stages[:-1]]
        stages = (*undecided, stages[-1])
    return GrowthPlan(sum(grid.sizes), num_training_steps, stages)


def _searchable(config: ViTGrowthConfig, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages after every one that its supernet phase would fill has joined the next."""
    fitting: list[Stage] = []
    for stage in stages:
        if fitting and phase_steps(config, stage.start - fitting[-1].start) >= stage.start - fitting[-1].start:
            fitting[-1] = join(fitting[-1], stage)
        else:
            fitting.append(stage)
    return tuple(fitting)


def shape_of(stage: Stage) -> Shape:
    """The shape that a stage of a plan trains."""
    return Shape(len(stage.blocks), int(stage.resolution))


def search_length(config: ViTGrowthConfig, plan: GrowthPlan, stage: int) -> int:
    """Optimizer steps of the supernet phase at the start of a stage.

    Args:
        config: With `search_steps`: a number of steps, or a fraction of the stage.
        plan: The stages.
        stage: Index of the stage; not the last one.

    Raises:
        PlanError: It would fill the stage.
    """
    length = plan.stages[stage + 1].start - plan.stages[stage].start
    steps = phase_steps(config, length)
    if steps >= length:
        raise PlanError(
            f"search_steps={config.search_steps} takes {steps} of the {length} steps of stage {stage}, which leaves "
            'none to train what was chosen: search less, train longer, or use search="fixed".'
        )
    return steps


def phase_steps(config: ViTGrowthConfig, length: int) -> int:
    """Optimizer steps of the supernet phase of a stage of `length` steps."""
    steps = config.search_steps
    if isinstance(steps, float):
        return max(1, round(steps * length))
    return steps
