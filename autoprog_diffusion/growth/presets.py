"""Schedules of freezing by family of models, as they were measured (docs/measurements.md, "Sooner")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from torch import nn


STAGES = 8
LAST_STAGE = 1 / 8  # of the run: the stage in which an eighth of the blocks trains
FIRST_FREEZE = 0.4  # of the run, for models of no family that is known to want another one
FIRST_FREEZE_JOINT = 0.6
ADAPTER = "lora_"  # in the names of the parameters of an adapter
# Layers that only attention has in which text tokens ask as well as answer; added keys alone are cross-attention.
JOINT = ("add_q_proj", "to_added_qkv", "add_qkv_proj")


def freezing_from(start: float, stages: int = STAGES) -> dict[str, Any]:
    """Fields of `GrowthConfig` for stages that freeze the model from the input on.

    Args:
        start: The first freeze, as a fraction of the run, below 7/8. The last stage takes an eighth of the run.
        stages: Number of stages, at least 3.

    Example:
        >>> [round(100 * bound) for bound in freezing_from(0.4)["boundaries"]]
        [40, 48, 56, 64, 72, 80, 88]
    """
    width = (1 - LAST_STAGE - start) / (stages - 2)
    return {
        "num_stages": stages,
        "min_trainable": 1 / stages,
        "order": "suffix",
        "direction": "freeze",
        "boundaries": tuple(start + width * k for k in range(stages - 1)),
    }


def has_joint_attention(model: nn.Module) -> bool:
    """Whether text and image attend to each other with weights of their own, as in SD3, Flux and Qwen-Image."""
    return any(name.rpartition(".")[2] in JOINT for name, _ in model.named_modules())


def trains_adapters(model: nn.Module) -> bool:
    """Whether all that trains are LoRA adapters of PEFT."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return bool(names) and all(ADAPTER in name for name in names)


def schedule_of(model: nn.Module) -> dict[str, Any]:
    """Fields of `GrowthConfig` that measured best for models of this kind.

    LoRA adapters train for the whole run: freezing them late cost more loss than it saved FLOPs.

    Args:
        model: Bare denoiser.

    Example:
        >>> GrowthConfig(**schedule_of(unet))  # doctest: +SKIP
    """
    if trains_adapters(model):
        return {"num_stages": 1, "min_trainable": 1.0}
    return freezing_from(FIRST_FREEZE_JOINT if has_joint_attention(model) else FIRST_FREEZE)
