"""Diffusers' transformer denoisers: one unit per repeated block, in forward order, as each class declares them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, by_class, class_names, how_to_name_blocks, register_adapter
from autoprog_diffusion.growth.errors import UnitError
from autoprog_diffusion.growth.units import Layout, build_layout

from .checkpointing import run_blocks_by
from .stage_embedding import build_stage_embedding


Names = tuple[str, ...]

# Attributes in which Diffusers' classes declare the classes of their blocks.
DECLARATIONS = ("_repeated_blocks", "_no_split_modules")

# Model class -> the lists of its repeated blocks in forward order, where registration order is another one, or where
# the class declares other modules, or none, as its blocks.
BLOCK_LISTS: dict[str, Names] = {
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
IN_TURNS = {"LatteTransformer3DModel"}

# Model class -> modules that run before the blocks although they are registered inside one of them.
EMBEDDERS: dict[str, Names] = {
    # DiT has no embedder of its own at the top: its forward calls block 0's for the output head as well.
    "DiTTransformer2DModel": ("transformer_blocks.0.norm1.emb",),
}

# A child is an output if its name contains one of OUTPUT_WORDS; OUTPUTS lists the exceptions by class.
OUTPUT_WORDS = {"out", "final", "head", "heads", "postprocess", "readout"}
CONTROLS = {"controlnet_blocks", "controlnet_single_blocks"}  # of ControlNets, one layer behind each of their blocks
OUTPUTS: dict[str, Names] = {
    "Cosmos3OmniTransformer": ("norm", "norm_moe_gen"),
    "PriorTransformer": ("proj_to_clip_embeddings", "clip_mean", "clip_std"),
    "RFD4ProteinaTransformer": ("local_latents_linear", "ca_linear", "insertion_q_proj", "insertion_k_proj"),
    "T5FilmDecoder": ("decoder_norm",),
    "UVit2DModel": ("project_from_hidden_norm", "project_from_hidden", "up_block", "mlm_layer"),
}


def declared_layout(model: nn.Module) -> Layout:
    """Units of a Diffusers transformer: its repeated blocks; children named as outputs are outputs, the rest inputs.

    The blocks are the lists of modules whose classes Diffusers declares in `_repeated_blocks` or `_no_split_modules`.
    If a class declares none of its lists, they are those of modules called a block or a layer.

    Raises:
        UnitError: No list of blocks is found, or two blocks share parameters.
    """
    modules = dict(model.named_modules())
    declared = by_class(model, BLOCK_LISTS) or block_lists(model)
    lists = [name for name in declared if name in modules]
    blocks = members_of(model, lists)
    if not IN_TURNS.isdisjoint(class_names(model)):
        # Stable: blocks of equal number keep the order of their lists.
        blocks.sort(key=lambda name: int(name.rpartition(".")[2]))
    # A child that holds a list is no input, whatever else is in it.
    holders = {name.split(".")[0] for name in lists}
    own = dict(model.named_children()) | dict(model.named_parameters(recurse=False))
    inputs = [name for name in own if name not in holders and not _is_output(model, name)]
    inputs += by_class(model, EMBEDDERS) or ()
    return build_layout(model, [[name] for name in blocks], inputs)


def block_lists(model: nn.Module) -> list[str]:
    """Names of the lists of repeated blocks among a model's children, in registration order.

    Raises:
        UnitError: There is none.
    """
    declared: set[str] = set()
    for attribute in DECLARATIONS:
        declared.update(getattr(model, attribute, None) or ())
    children = dict(model.named_children()).items()
    found = lists_where(declared.__contains__, children)
    # A class that declares none: by what its blocks are called.
    found = found or lists_where(lambda name: "Block" in name or "Layer" in name, children)
    if not found:
        raise UnitError(f"no list of repeated blocks was found in {type(model).__name__}. {how_to_name_blocks(model)}")
    return found


def lists_where(is_block: Callable[[str], bool], modules: Iterable[tuple[str, nn.Module]]) -> list[str]:
    """Names of those of the named `modules` that are lists of blocks only, by the names of the blocks' classes."""
    found = []
    for name, module in modules:
        if isinstance(module, nn.ModuleList) and len(module) > 0:
            classes = [type(member).__name__ for member in module]
            if all(map(is_block, classes)):
                found.append(name)
    return found


def members_of(model: nn.Module, lists: Iterable[str]) -> list[str]:
    """Names of the modules in the lists called `lists`, one list after the other."""
    return [f"{name}.{member}" for name in lists for member in model.get_submodule(name)._modules]


def is_diffusers_model(model: nn.Module) -> bool:
    """Whether Diffusers' base class, or a class made like it, declares what this model is made of."""
    return all(hasattr(type(model), attribute) for attribute in DECLARATIONS)


def _is_output(model: nn.Module, name: str) -> bool:
    """Whether the child or parameter called `name` runs after the blocks."""
    if name.endswith("scale_shift_table") or not OUTPUT_WORDS.isdisjoint(name.split("_")):
        return True
    exceptions = by_class(model, OUTPUTS) or ()
    return name in exceptions or name in CONTROLS


register_adapter(
    Adapter(
        name="transformer",
        classes=(),
        layout=declared_layout,
        stage_embedding=build_stage_embedding,
        checkpointing=run_blocks_by,
    ),
    matches=is_diffusers_model,
)
