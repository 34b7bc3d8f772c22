"""Emoji as uint8 tensors (N, 3, 64, 64), and the latents that the bundled VAE gives for them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from autoprog_diffusion.data.emoji import emoji_dataset


SIZE = 64
EXTRA_STYLES = ("twemoji", "noto", "noto-v1", "fluent-emoji-flat", "fluent-emoji", "emojione")  # never openmoji


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Maps uint8 to the range -1..1."""
    return images.float() / 127.5 - 1


def load_images(style: str) -> tuple[torch.Tensor, list[str]]:
    """Renders a style: uint8 images (count, 3, 64, 64) and their captions."""
    data = emoji_dataset(style, size=SIZE)
    images = np.stack([np.asarray(image.convert("RGB")) for image in data["image"]])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), list(data["text"])


def load_extra_images(data_dir: str) -> torch.Tensor:
    """Loads the other styles as uint8 images; rows of any style not listed (OpenMoji above all) are dropped."""
    path = Path(data_dir) / "emoji_styles_64.parquet"
    if not path.is_file():
        raise ValueError(f"--data_dir must be a folder with {path.name}, not {data_dir!r}")
    table = pq.read_table(path, columns=["image", "style"]).to_pylist()
    blobs = [row["image"] for row in table if row["style"] in EXTRA_STYLES]
    arrays = [np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")) for blob in blobs]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def shrink(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes uint8 images."""
    small = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def encode(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes all images once; training draws from the cached posteriors."""
    with torch.no_grad():
        posteriors = [vae.encode(to_pixels(chunk)).latent_dist for chunk in images.split(64)]
    factor = vae.config.scaling_factor
    return torch.cat([p.mean for p in posteriors]) * factor, torch.cat([p.std for p in posteriors]) * factor
