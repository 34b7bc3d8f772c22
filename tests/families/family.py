"""What a row of the table of model families holds, and what all rows are built from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn


# Rows whose class the oldest Diffusers that pyproject.toml allows does not have.
NEWER = {
    "bria": "BriaTransformer2DModel",
    "flux2": "Flux2Transformer2DModel",
    "z_image": "ZImageTransformer2DModel",
}


def newer(id: str) -> Any:
    """The class of a row of `NEWER`; None if the installed Diffusers lacks it, and the row is left out."""
    return getattr(diffusers, NEWER[id], None)


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        id: Of its tests.
        build: A tiny model of the real class, the same weights at every call.
        inputs: Keyword arguments of its forward for a seed and a batch size.
        blocks: Names of the growable blocks, in forward order.
        points: Number of places where the stage embedding enters; 0 where no biased layer ends a timestep embedder.
        unused: Patterns of the parameters whose gradient is none or zero, whatever is trained.
        time_token: Whether the timestep enters as a token of the sequence only, so that it ends at a frozen front.
        reloads: Whether its library can build it again from a folder; timm fixes the sizes of VOLO.
    """

    id: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]
    blocks: tuple[str, ...]
    points: int
    unused: tuple[str, ...] = ()
    time_token: bool = False
    reloads: bool = True

    def output(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The model's first output; a list of equal shapes (Z-Image) is stacked along a new batch dimension."""
        output = model(**inputs, return_dict=False)[0]
        return torch.stack(list(output)) if isinstance(output, (list, tuple)) else output

    def checkpoint(self, model: nn.Module) -> bool:
        """Let the model compute its activations again in the backward pass; whether it can."""
        if model._supports_gradient_checkpointing:
            model.enable_gradient_checkpointing()
        return model._supports_gradient_checkpointing

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the model as its library does."""
        model.save_pretrained(folder)

    def loss(self, model: nn.Module, seed: int, batch: int = 2) -> Tensor:
        """A loss with a random target; the same seed gives the same loss, dropout included."""
        inputs = self.inputs(seed, batch)
        torch.manual_seed(seed)
        output = self.output(model, inputs)
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed + 1000))
        return nn.functional.mse_loss(output, target)


def seeded(cls: Callable[..., nn.Module], **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        model = cls(**config)
        alive(model)
        torch.set_rng_state(state)
        return model

    return build


@torch.no_grad()
def alive(model: nn.Module) -> None:
    """Zero parameters (gates, output heads, pad tokens) get noise: at zero they would stop all gradients."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.copy_(0.05 * torch.randn(parameter.shape))


def units(prefix: str, counts: list[int]) -> list[str]:
    """Names of a UNet's resnets, of which level number i has `counts[i]`."""
    return [f"{prefix}.{level}.resnets.{index}" for level, count in enumerate(counts) for index in range(count)]


def lists(**counts: int) -> tuple[str, ...]:
    """Names of the members of module lists, one list after the other."""
    return tuple(f"{name}.{index}" for name, count in counts.items() for index in range(count))


def noise(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def time(seed: int, batch: int, high: int = 1000) -> Tensor:
    return torch.randint(0, high, (batch,), generator=torch.Generator().manual_seed(seed + 1))


def grid(*sizes: int) -> Tensor:
    """Position ids (tokens, axes) of a grid, for rotary embeddings."""
    return torch.cartesian_prod(*(torch.arange(float(size)) for size in sizes))
