"""Cached latents of the bundled VAE, and helpers that both transformers share."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from emoji_images import encode
from torch import Tensor, nn


ASSETS = Path(__file__).resolve().parents[1]


class Data:
    """Cached posteriors of the images, (N, 4, 16, 16), and their conditions."""

    def __init__(self, images: Tensor, conditions: tuple[Tensor, ...], names: list[str]) -> None:
        vae = AutoencoderKL.from_pretrained(ASSETS / "tiny_sd" / "vae").eval()
        self.mean, self.std = encode(vae, images)
        self.conditions = conditions
        self.names = names

    def __len__(self) -> int:
        return len(self.mean)

    def latents(self, index: Tensor) -> Tensor:
        return self.mean[index] + self.std[index] * torch.randn_like(self.mean[index])


def stratified(count: int) -> Tensor:
    """Returns one uniform number from each of ``count`` equal ranges, shuffled: less variance than free draws."""
    return ((torch.arange(count) + torch.rand(count)) / count)[torch.randperm(count)]


def zero_output(*layers: nn.Linear) -> None:
    """Starts the output head at zero."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
