"""Every denoiser class of the installed Diffusers: what grows in it, and where a stage embedding enters.

python docs/make_families.py                   # prints the table
python docs/make_families.py docs/families.md  # writes it
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.adapters import timestep_embedders
from autoprog_diffusion.growth import UnitError, find_adapter


# Constructor arguments of classes that have no defaults of their own; those of the published model where there is one.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "DreamLiteTransformer2DModel": {"in_channels": 64},
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "out_channels": 16, "patch_size": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 16,
        "num_layers": 16,
        "num_single_layers": 32,
        "attention_head_dim": 128,
        "num_attention_heads": 20,
        "caption_channels": [4096, 4096],
        "text_emb_dim": 2048,
        "axes_dims_rope": (64, 32, 32),
        "max_resolution": (128, 128),
        "llama_layers": list(range(48)),
    },
    "HunyuanDiT2DModel": {
        "num_attention_heads": 16,
        "attention_head_dim": 88,
        "in_channels": 4,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "sample_size": 128,
        "hidden_size": 1408,
        "num_layers": 40,
    },
    "LatteTransformer3DModel": {
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "patch_size": 2,
        "sample_size": 64,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "caption_channels": 4096,
    },
    "LuminaNextDiT2DModel": {"num_kv_heads": 8, "num_layers": 24, "sample_size": 128},
    "OmniGenTransformer2DModel": {"rope_scaling": {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}},
    "Transformer2DModel": {"in_channels": 64},
    "TransformerTemporalModel": {"in_channels": 64},
}
NOT_DENOISERS = ("MotionAdapter",)
# Classes that train, fold, reload and resume in this project's tests; the others are cut into units by the same rules.
TRAINED_IN_TESTS = (
    "AllegroTransformer3DModel",
    "AuraFlowTransformer2DModel",
    "BriaTransformer2DModel",
    "ChromaTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "CogView4Transformer2DModel",
    "DiTTransformer2DModel",
    "Flux2Transformer2DModel",
    "FluxTransformer2DModel",
    "HunyuanDiT2DModel",
    "HunyuanVideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "LatteTransformer3DModel",
    "Lumina2Transformer2DModel",
    "MochiTransformer3DModel",
    "OmniGenTransformer2DModel",
    "PixArtTransformer2DModel",
    "PriorTransformer",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "SkyReelsV2Transformer3DModel",
    "StableAudioDiTModel",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNet3DConditionModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
    "WanTransformer3DModel",
    "ZImageTransformer2DModel",
)

NOTES = (
    "* *Blocks*: growable units at the class's default size.",
    "* *Stage embedding*: the layer to whose output it is added and into whose bias it is folded. Where a class has "
    "none, everything else works and the stage embedding is off.",
    "* *LoRA*: the class has `add_adapter`. Others take adapters by `peft.inject_adapter_in_model`.",
    "* *Tested*: trains, folds, reloads in plain Diffusers and resumes in this project's tests. The rest is cut into "
    "units by the same rules; a block that runs out of the order of its list is an error at the first forward pass.",
    "* *Checkpointing*: `checkpointing=` chooses block by block what is computed again. Others are refused by name.",
    '* Your own model class: name its blocks, `GrowthScheduler(model, config, blocks=["layers.*"])`.',
)


@dataclass(frozen=True)
class Row:
    """One class of the table.

    Attributes:
        name: Of the class.
        blocks: Number of growable blocks at its default size; 0 where they must be named.
        points: Layers at which the stage embedding enters.
        problem: Why something is missing, or an empty string.
        lora: Whether Diffusers lets it take LoRA adapters by itself.
        checkpointing: Whether what is computed again in the backward pass can be chosen block by block.
    """

    name: str
    blocks: int
    points: tuple[str, ...]
    problem: str
    lora: bool
    checkpointing: bool


def denoiser_classes() -> dict[str, type[nn.Module]]:
    """The model classes that Diffusers exports from `models.transformers` and `models.unets`, by name."""
    import diffusers
    from diffusers.models.modeling_utils import ModelMixin

    found: dict[str, type[nn.Module]] = {}
    for name in sorted(dir(diffusers)):
        cls = getattr(diffusers, name, None)
        if not inspect.isclass(cls) or not issubclass(cls, ModelMixin) or name in NOT_DENOISERS:
            continue
        if cls.__module__.split(".")[2:3] in (["transformers"], ["unets"]):
            found[name] = cls
    return found


def describe(cls: type[nn.Module]) -> Row:
    """The row of one class, from a model of its default size that holds no memory (on the meta device)."""
    with torch.device("meta"):
        model = cls(**ARGUMENTS.get(cls.__name__, {}))
    problems = []
    try:
        blocks = len(find_adapter(model).layout(model).blocks)
    except UnitError:
        blocks, problems = 0, ["name its blocks with `blocks=`"]
    try:
        points = tuple(timestep_embedders(model))
    except UnitError as error:
        points = ()
        problems.append("its timestep embedder has no bias" if "has no bias" in str(error) else "no timestep embedder")
    return Row(
        name=cls.__name__,
        blocks=blocks,
        points=points,
        problem="; ".join(problems),
        lora=hasattr(cls, "add_adapter"),
        checkpointing=_has_checkpointing(model),
    )


def _has_checkpointing(model: nn.Module) -> bool:
    """Whether the model lets a function run its blocks."""
    try:
        route = find_adapter(model).checkpointing
        return route is not None and route(model, print) is not None
    except UnitError:
        return False


def rows() -> Iterator[Row]:
    """The rows of all classes, by name."""
    return (describe(cls) for cls in denoiser_classes().values())


def table() -> str:
    """The page as Markdown."""
    import diffusers

    lines = [
        "# Model families",
        "",
        f"Every denoiser class of Diffusers {diffusers.__version__}. Written by "
        "`python docs/make_families.py docs/families.md`; a test compares.",
        "",
        *NOTES,
        "",
        "| class | blocks | stage embedding | LoRA | checkpointing | tested |",
        "|---|---:|---|---|---|---|",
    ]
    for row in rows():
        first = f"`{row.points[0]}`" if row.points else ""
        entry = first if len(row.points) < 2 else f"{first} and {len(row.points) - 1} more"
        place = ", ".join(part for part in (entry, row.problem) if part)
        flags = (row.lora, row.checkpointing, row.name in TRAINED_IN_TESTS)
        marks = " | ".join("yes" if flag else "" for flag in flags)
        lines.append(f"| {row.name} | {row.blocks or '-'} | {place} | {marks} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(table(), encoding="utf-8")
    else:
        sys.stdout.write(table())
