"""Diffusers' transformer denoisers: one unit per repeated block, in forward order, by what each class declares."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, by_class, how_to_name_blocks, register_adapter
from autoprog_diffusion.growth.errors import UnitError
from autoprog_diffusion.growth.units import Layout, build_layout

from .stage_embedding import build_stage_embedding


# Model class -> the lists of its repeated blocks in forward order, where registration order is another one, or where
# the class declares other modules, or none, as its blocks.
BLOCK_LISTS: dict[str, tuple[str, ...]] = {
    "Lumina2Transformer2DModel": ("context_refiner", "noise_refiner", "layers"),
    "WanVACETransformer3DModel": ("vace_blocks", "blocks"),
    "Flux3Transformer2DModel": (
        "txt_mode_blocks",
        "mode_blocks.image",
        "mode_blocks.image_cond",
        "single_transformer_blocks",
    ),
    "Kandinsky6Transformer3DModel": (
        "video_text_transformer_blocks",
        "audio_text_transformer_blocks",
        "visual_transformer_blocks",
    ),
}

# Model classes whose lists run in turns: the first block of every list, then the second of every list, ...
IN_TURNS = {"LatteTransformer3DModel": True}

# What runs before the blocks although it is registered inside one of them.
EMBEDDERS: dict[str, tuple[str, ...]] = {
    # DiT has no embedder of its own at the top: its forward calls block 0's for the output head as well.
    "DiTTransformer2DModel": ("transformer_blocks.0.norm1.emb",),
}

# Words in the names of what runs after the blocks, and names that have none of them.
OUTPUT_WORDS = {"out", "final", "head", "heads", "postprocess", "readout"}
OUTPUTS: dict[str, tuple[str, ...]] = {
    "Cosmos3OmniTransformer": ("norm", "norm_moe_gen"),
    "PriorTransformer": ("proj_to_clip_embeddings", "clip_mean", "clip_std"),
    "RFD4ProteinaTransformer": ("local_latents_linear", "ca_linear", "insertion_q_proj", "insertion_k_proj"),
    "T5FilmDecoder": ("decoder_norm",),
    "UVit2DModel": ("project_from_hidden_norm", "project_from_hidden", "up_block", "mlm_layer"),
}


def declared_layout(model: nn.Module) -> Layout:
    """Units of a Diffusers transformer: its repeated blocks; what is named as an output is one, the rest is input.

    The blocks are the lists of modules whose classes Diffusers declares in `_repeated_blocks` or `_no_split_modules`;
    where a class declares none of its lists, those of modules called a block or a layer.

    Raises:
        UnitError: No list of blocks is found, or two blocks share parameters.
    """
    modules = dict(model.named_modules())
    lists = [name for name in by_class(model, BLOCK_LISTS) or block_lists(model) if name in modules]
    blocks = [f"{name}.{index}" for name in lists for index in range(len(modules[name]))]  # type: ignore[arg-type]
    if by_class(model, IN_TURNS):
        blocks.sort(key=lambda name: int(name.rpartition(".")[2]))
    own = [*(name for name, _ in model.named_children()), *(name for name, _ in model.named_parameters(recurse=False))]
    inputs = [
        name for name in own if not _is_output(model, name) and name not in {head.split(".")[0] for head in lists}
    ]
    extra = by_class(model, EMBEDDERS) or ()
    return build_layout(model, [(name, [name]) for name in blocks], [*inputs, *extra])


def block_lists(model: nn.Module) -> tuple[str, ...]:
    """Names of the lists of repeated blocks among a model's children, in registration order.

    Raises:
        UnitError: There is none.
    """
    declared = {*_declared(model, "_repeated_blocks"), *_declared(model, "_no_split_modules")}
    lists = {name: child for name, child in model.named_children() if isinstance(child, nn.ModuleList) and len(child)}
    found = [name for name, blocks in lists.items() if {type(block).__name__ for block in blocks} <= declared]
    found = found or [name for name, blocks in lists.items() if all(_is_block(block) for block in blocks)]
    if not found:
        raise UnitError(f"no list of repeated blocks was found in {type(model).__name__}. {how_to_name_blocks(model)}")
    return tuple(found)


def is_diffusers_model(model: nn.Module) -> bool:
    """Whether Diffusers' base class, or a class made like it, declares what this model is made of."""
    return hasattr(type(model), "_repeated_blocks") and hasattr(type(model), "_no_split_modules")


def _is_output(model: nn.Module, name: str) -> bool:
    words = set(name.split("_"))
    return bool(words & OUTPUT_WORDS) or name.endswith("scale_shift_table") or name in (by_class(model, OUTPUTS) or ())


def _declared(model: nn.Module, attribute: str) -> Iterable[str]:
    return getattr(type(model), attribute, None) or ()


def _is_block(module: nn.Module) -> bool:
    return any(word in type(module).__name__ for word in ("Block", "Layer"))


register_adapter(Adapter("transformer", (), declared_layout, build_stage_embedding), matches=is_diffusers_model)
