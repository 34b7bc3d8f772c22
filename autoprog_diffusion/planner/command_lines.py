"""The command line of a recipe that trains a model as a candidate says."""

from __future__ import annotations

import shlex
from typing import Any

from autoprog_diffusion.growth import GrowthConfig

from .candidates import Candidate
from .models import ModelSource


# Class of a denoiser -> the recipe that trains it in full, and whether LoRA's recipe trains it too.
RECIPES = {
    "UNet2DConditionModel": ("finetune_sd.py", True),
    "DiTTransformer2DModel": ("finetune_dit.py", False),
    "SD3Transformer2DModel": ("finetune_flow.py", True),
    "FluxTransformer2DModel": ("finetune_flow.py", True),
    "Flux2Transformer2DModel": ("finetune_flow.py", True),
    "QwenImageTransformer2DModel": ("finetune_flow.py", True),
    "ZImageTransformer2DModel": ("finetune_flow.py", True),
    "SanaTransformer2DModel": ("finetune_flow.py", True),
    "Lumina2Transformer2DModel": ("finetune_flow.py", True),
    "WanTransformer3DModel": ("finetune_flow.py", True),
    "PixArtTransformer2DModel": ("finetune_flow.py", False),
}
XL = "finetune_sdxl.py"
LORA = "finetune_lora.py"


def command_line(source: ModelSource, candidate: Candidate, *, pixels: int, steps: int | None) -> str:
    """A command line of a recipe; for a class that none trains the lines of a script.

    Args:
        source: The model.
        candidate: How it is trained.
        pixels: Side of the images.
        steps: Optimizer steps of the run; None leaves them to the recipe.
    """
    recipe = recipe_of(source, lora=candidate.plan.lora is not None)
    if recipe is None:
        return script_lines(candidate)
    words = ["accelerate", "launch", f"recipes/{recipe}", *flags(source, candidate, pixels=pixels, steps=steps)]
    return shlex.join(words)


def recipe_of(source: ModelSource, *, lora: bool) -> str | None:
    """The recipe that trains a model; None without one."""
    recipe, takes_lora = RECIPES.get(source.cls, (None, False))
    if lora:
        return LORA if takes_lora else None
    if source.cls == "UNet2DConditionModel" and source.config.get("addition_embed_type") == "text_time":
        return XL
    return recipe


def flags(source: ModelSource, candidate: Candidate, *, pixels: int, steps: int | None) -> list[str]:
    """The flags of a recipe."""
    plan = candidate.plan
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": source.hub or source.name,
        "resolution": pixels,
        "train_batch_size": candidate.batch,
        "mixed_precision": "bf16",
        # What the losses were measured with; and it has no average of the weights, which would take memory.
        "lr_scheduler": "cosine",
    }
    if steps is not None:
        values["max_train_steps"] = steps
    if plan.lora is not None:
        values["rank"] = plan.lora
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return words + growth_flags(candidate) + optimizer_flags(candidate)


def growth_flags(candidate: Candidate) -> list[str]:
    """Flags that say what trains, and how it is held."""
    growth = dict(candidate.plan.growth)
    if candidate.family == "freeze":
        # Without a flag of the schedule a recipe would take another one.
        growth.setdefault("num_stages", GrowthConfig().num_stages)
    words = []
    if growth.pop("stage_embedding", None) is False:
        # One stage: plain training, which takes no other flag of growth but those of recomputation.
        stored = growth.get("frozen_dtype") is not None
        growth.pop("num_stages")
        words += ["--num_stages", "1", "--no-stage_embedding"] if stored else ["--growth", "off"]
    for name, value in growth.items():
        words += [f"--{name}", str(value)]
    return words


def optimizer_flags(candidate: Candidate) -> list[str]:
    """Flags of the optimizer that are not the recipes' defaults."""
    plan = candidate.plan
    words = []
    if plan.optimizer != "adamw":
        words += ["--optimizer", plan.optimizer]
    if plan.trained_dtype != "float32":
        words += ["--trained_dtype", plan.trained_dtype]
    if plan.step_in_backward:
        words.append("--step_in_backward")
    return words


def script_lines(candidate: Candidate) -> str:
    """The settings for a training script of the user's, for a class that no recipe trains."""
    plan = candidate.plan
    settings = ", ".join(f"{name}={value!r}" for name, value in plan.growth.items())
    parts = [f"GrowthScheduler(model, GrowthConfig({settings}), accelerator)", f"batch {candidate.batch}"]
    if plan.lora is not None:
        parts.append(f"LoraConfig(r={plan.lora})")
    parts.append(f"optimizer {plan.optimizer}")
    if plan.trained_dtype != "float32":
        parts.append(f"weights that train in {plan.trained_dtype}")
    if plan.step_in_backward:
        parts.append("growth.step_in_backward(optimizer)")
    return "; ".join(parts)
