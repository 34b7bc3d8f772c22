"""The block groups of a vision transformer, and the depths and resolutions it grows through.

A network of depth l is a prefix of every group: full models are allocated once, names and shapes never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from autoprog_diffusion.growth.adapter import how_to_name_blocks
from autoprog_diffusion.growth.errors import ConfigError, PlanError, UnitError
from autoprog_diffusion.growth.units import layout_from_patterns

from .config import Ints, ViTGrowthConfig
from .operators import all_tensors


Depths = Sequence[int]  # of every group, in blocks
OUTLOOKER_SHARE = 0.23  # of VOLO's depth, rounded to an even number (released code of arXiv 2203.14509)


@dataclass(frozen=True)
class BlockGroup:
    """Blocks of one shape that grow together.

    Attributes:
        blocks: Names of the modules, in forward order.
        tensors: For every block the names of its parameters and buffers, in the same order for all.
    """

    blocks: tuple[str, ...]
    tensors: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.blocks)


def find_groups(model: nn.Module, patterns: Sequence[str] | None = None) -> tuple[BlockGroup, ...]:
    """The block groups that a model declares: one for ViT and DeiT, outlookers and transformer blocks for VOLO.

    Args:
        model: The bare model, of timm or transformers (recognised by what it declares), or one with a method
            `block_groups` that lists the names of its blocks, group by group.
        patterns: Names of the blocks in forward order, for another model, for example `["layers.*"]`.

    Raises:
        UnitError: No blocks are found, or blocks of a group differ in shape.
    """
    found: list[list[str]]
    if patterns is not None:
        blocks = layout_from_patterns(model, patterns).blocks
        found = [[block.name for block in blocks]]
    elif hasattr(model, "block_groups"):
        found = model.block_groups()  # type: ignore[operator]
    elif isinstance(getattr(model, "network", None), nn.ModuleList) and hasattr(model, "post_network"):
        found = _volo(model)
    else:
        found = [_listed(model)]
    return tuple(_group(model, names) for names in found)


def split_depths(depths: Iterable[int], sizes: Depths) -> list[Ints]:
    """Depth of every group for each of the increasing total `depths`; no group ever shrinks.

    One group has it all. Of two (VOLO), the first has 23 %, rounded to an even number.

    Args:
        depths: Total depths, increasing, at most the sum of the sizes.
        sizes: Blocks of the full groups.

    Raises:
        PlanError: More than two groups would grow.

    Example:
        >>> split_depths([9, 12, 15, 18], [4, 14])
        [(2, 7), (4, 8), (4, 11), (4, 14)]
    """
    depths = list(depths)
    if len(sizes) == 1:
        return [(depth,) for depth in depths]
    if depths == [sum(sizes)]:
        return [tuple(sizes)]
    if len(sizes) > 2:
        raise PlanError(f"a model with {len(sizes)} groups of blocks cannot grow in depth: use min_depth=1.")
    # Each group holds a block, fits its full size, and never shrinks.
    first, second = 1, 1
    result: list[Ints] = []
    for depth in depths:
        least = max(first, depth - sizes[1])
        most = min(sizes[0], depth - second)
        wanted = make_divisible(OUTLOOKER_SHARE * depth, 2)
        first = min(max(wanted, least), most)
        second = depth - first
        result.append((first, second))
    return result


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value`, but not below 90 % of it (MobileNet's rule, as in timm).

    Args:
        value: To round.
        divisor: Of the result, which is at least this.
    """
    nearest = int(value + divisor / 2) // divisor * divisor
    rounded = max(divisor, nearest)
    if rounded < 0.9 * value:
        rounded += divisor
    return rounded


def depth_grid(config: ViTGrowthConfig, sizes: Depths) -> list[int]:
    """Total depth of every stage of the linear schedule; VOLO-D1's 18 blocks give 9, 12, 15, 18.

    Args:
        config: With the number of stages and the share of the blocks that the first one has.
        sizes: Blocks of the full groups; where there are fewer than stages, some stages have the same depth.
    """
    full = sum(sizes)
    last = config.num_stages - 1
    low = max(len(sizes), round(config.min_depth * full))  # at least a block of each group
    depths = []
    for stage in range(last):
        added = (full - low) * stage // last
        depths.append(low + added)
    return [*depths, full]


def resolution_grid(config: ViTGrowthConfig, image_size: int | None, multiple: int) -> list[int]:
    """Image side in pixels of every stage of the linear schedule.

    Args:
        config: With its `resolutions`, or `min_resolution`.
        image_size: The model's own image side; None where it does not say.
        multiple: What sides must be multiples of.

    Raises:
        ConfigError: A side is no multiple, the last one is not the model's, or neither says how large images are.
    """
    if config.resolutions is None:
        if image_size is None:
            raise ConfigError("the model does not say how large its images are: give resolutions=(...), in pixels.")
        low = config.min_resolution
        last = config.num_stages - 1
        resolutions = []
        for stage in range(last):
            share = low + (1 - low) * stage / last
            side = make_divisible(share * image_size, multiple)
            resolutions.append(min(image_size, side))
        full = make_divisible(image_size, multiple)
        return [*resolutions, min(image_size, full)]
    for size in config.resolutions:
        if size % multiple:
            below = max(multiple, size // multiple * multiple)
            raise ConfigError(
                f"resolution {size} is not a multiple of {multiple}, what the model's patches cover: use {below} or "
                f"{below + multiple}."
            )
    if image_size is not None and config.resolutions[-1] != image_size:
        raise ConfigError(
            f"resolutions={config.resolutions} must end in the model's own image size, {image_size}: position "
            "embeddings of the full grid are what a checkpoint holds."
        )
    return list(config.resolutions)


def _volo(model: nn.Module) -> list[list[str]]:
    """The outlookers of stage 1, and the transformer blocks of all later stages; class attention never grows.

    Args:
        model: A VOLO; what its `network` holds besides stages (downsampling) are no blocks.

    Returns:
        Names of the two groups' blocks, in forward order.
    """
    stages = []
    for index, stage in enumerate(model.network):  # type: ignore[arg-type]
        if isinstance(stage, nn.Sequential):
            names = [f"network.{index}.{inner}" for inner in range(len(stage))]
            stages.append(names)
    outlookers, *later = stages
    transformer_blocks = [name for names in later for name in names]
    return [outlookers, transformer_blocks]


def _listed(model: nn.Module) -> list[str]:
    """Members of the one list of repeated blocks: timm's `blocks`, or what transformers declares it never splits.

    Raises:
        UnitError: The model declares no such list.
    """
    declared = set(getattr(model, "_no_split_modules", None) or ())
    for name, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module):
            kinds = {type(block).__name__ for block in module}
            if name == "blocks" or kinds <= declared:
                return [f"{name}.{index}" for index in range(len(module))]
    raise UnitError(f"{type(model).__name__} declares no list of blocks. {how_to_name_blocks(model)}")


def _group(model: nn.Module, names: Sequence[str]) -> BlockGroup:
    """The group of some blocks.

    Args:
        model: The bare model.
        names: Of the blocks, in forward order; at least one.

    Raises:
        UnitError: They differ in shape.
    """
    first = _shapes(model, names[0])
    tensors = []
    for name in names:
        shapes = _shapes(model, name)
        for key in sorted({*shapes, *first}):
            found = shapes.get(key)
            wanted = first.get(key)
            if found != wanted:
                raise UnitError(
                    f"block {name!r} differs from {names[0]!r} in {key!r}: {found} instead of {wanted}. "
                    "Weights of one can only grow into the other where blocks have one shape."
                )
        tensors.append(tuple(f"{name}.{inner}" for inner in first))
    return BlockGroup(tuple(names), tuple(tensors))


def _shapes(model: nn.Module, block: str) -> dict[str, Ints]:
    """Shapes of a block's parameters and buffers, by their names within it."""
    shapes = {}
    for name, tensor in all_tensors(model.get_submodule(block)).items():
        shapes[name] = tuple(tensor.shape)
    return shapes
