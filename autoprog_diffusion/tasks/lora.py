"""LoRA by PEFT: settings, the pipelines that take one, and the adapters, the only parameters that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig
from torch import nn

from autoprog_diffusion.growth.errors import ConfigError, GrowthError, UnitError

from .families import FAMILY_OF
from .flow_matching import load_flow
from .loading import pipeline_class
from .sdxl import load_sdxl
from .stable_diffusion import load_pipeline


@dataclass(frozen=True)
class LoraSettings:
    """LoRA."""

    rank: int = 4
    """Rank of the update matrices; dreambooth.py trains the whole denoiser without the flag."""
    lora_alpha: float | None = None
    """Scale of the updates times the rank [the rank]."""
    lora_dropout: float = 0.0
    """Dropout on the updates' inputs."""
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Last parts of the names of the layers that get an update; Flux.2 has those of its single blocks beside them."""
    use_dora: bool = False
    """Train the weights' magnitudes apart from their directions (arXiv 2402.09353)."""
    init_lora_weights: Literal["gaussian", "default"] = "gaussian"
    """Initial values of the first update matrix; the second one is zero."""


def load_any(name: str, **hub: str | None) -> Any:
    """A text-to-image pipeline in float32, by its name and options of `from_pretrained`.

    Raises:
        GrowthError: It cannot be loaded, or is another kind of pipeline.
    """
    loaders: dict[str, Any] = {
        **dict.fromkeys(FAMILY_OF, load_flow),
        "StableDiffusionPipeline": load_pipeline,
        "StableDiffusionXLPipeline": load_sdxl,
    }
    kind = pipeline_class(name, **hub)
    if kind not in loaders:
        raise GrowthError(f"{name} is a {kind}, which this recipe does not train: use one of {sorted(loaders)}.")
    return loaders[kind](name, **hub)


def add_lora(model: nn.Module, lora: LoraSettings, seed: int) -> None:
    """Freeze the model and give it adapters, the only parameters that train.

    Args:
        model: A Diffusers denoiser.
        lora: Settings of the adapters.
        seed: Of their initial values: the same on every process.

    Raises:
        ConfigError: A setting is out of range.
        GrowthError: The model's class takes no adapters, or PEFT refuses a layer.
        UnitError: A target names no layer of the model.
    """
    _check(lora)
    if not isinstance(model, PeftAdapterMixin):
        raise GrowthError(
            f"{type(model).__name__} takes no PEFT adapters in this version of Diffusers: train it in full, "
            "for example with finetune_dit.py, or choose another model."
        )
    _check_targets(model, lora.target_modules)
    alpha: Any = lora.rank if lora.lora_alpha is None else lora.lora_alpha
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        use_dora=lora.use_dora,
        init_lora_weights=True if lora.init_lora_weights == "default" else lora.init_lora_weights,
    )
    model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_adapter(config)
        except ValueError as error:
            raise GrowthError(f"PEFT refuses --target_modules {' '.join(lora.target_modules)}: {error}") from error


def check_no_lora(lora: LoraSettings) -> None:
    """Refuse settings of adapters where there are none, with a rank of 0.

    Raises:
        ConfigError: The message names the flag.
    """
    plain = LoraSettings(rank=0)
    for name, value in vars(lora).items():
        if value != getattr(plain, name):
            raise ConfigError(
                f"--{name} does nothing without --rank: give a rank, for example 16, or remove the flag."
            )


def _check(lora: LoraSettings) -> None:
    if lora.rank < 1:
        raise ConfigError(f"--rank {lora.rank} is not allowed: use a whole number of at least 1.")
    if lora.lora_alpha is not None and not lora.lora_alpha > 0:
        raise ConfigError(f"--lora_alpha {lora.lora_alpha} is not allowed: use a number above 0.")
    if not 0 <= lora.lora_dropout < 1:
        raise ConfigError(f"--lora_dropout {lora.lora_dropout} is not allowed: use a probability in [0, 1).")


def _check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            known = sorted({".".join(name.split(".")[-2:]) for name in layers})
            raise UnitError(
                f"--target_modules {target!r} names no linear or convolution layer of {type(model).__name__}; its "
                f"layers end in {known}."
            )
