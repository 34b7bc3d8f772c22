"""Diffusers' transformer denoisers: one unit per repeated block, in forward order."""

from __future__ import annotations

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, register_adapter
from autoprog_diffusion.growth.units import Layout, build_layout

from .stage_embedding import build_stage_embedding


# Model class -> the lists of its repeated blocks, in forward order.
BLOCK_LISTS: dict[str, tuple[str, ...]] = {
    "DiTTransformer2DModel": ("transformer_blocks",),
    "PixArtTransformer2DModel": ("transformer_blocks",),
    "SD3Transformer2DModel": ("transformer_blocks",),
    "FluxTransformer2DModel": ("transformer_blocks", "single_transformer_blocks"),
}

# What runs before the blocks although it is registered inside or after them.
EMBEDDERS: dict[str, tuple[str, ...]] = {
    # DiT has no embedder of its own at the top: its forward calls block 0's for the output head as well.
    "DiTTransformer2DModel": ("transformer_blocks.0.norm1.emb",),
    "PixArtTransformer2DModel": ("adaln_single", "caption_projection"),
}


def transformer_layout(model: nn.Module) -> Layout:
    """Units of a Diffusers transformer: its repeated blocks; what is registered before them is input, the rest output.

    Raises:
        UnitError: The model has no block, or two blocks share parameters.
    """
    family = next(c.__name__ for c in type(model).__mro__ if c.__name__ in BLOCK_LISTS)
    lists = BLOCK_LISTS[family]
    blocks = [f"{name}.{index}" for name in lists for index in range(len(model.get_submodule(name)))]  # type: ignore[arg-type]
    children = [name for name, _ in model.named_children()]
    inputs = children[: children.index(lists[0])]
    extra = [name for name in EMBEDDERS.get(family, ()) if _exists(model, name)]
    return build_layout(model, [(name, [name]) for name in blocks], [*inputs, *extra])


def _exists(model: nn.Module, name: str) -> bool:
    return any(found == name for found, _ in model.named_modules())


register_adapter(Adapter("transformer", tuple(BLOCK_LISTS), transformer_layout, build_stage_embedding), fallback=True)
