"""How each kind of VAE encodes pictures, and how its pipeline centres and scales the latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor


Noise = Callable[[Tensor], Tensor]  # draws standard normal noise like a tensor


@dataclass(frozen=True)
class Codec:
    """What a VAE's class decides.

    Attributes:
        encode: VAE and (N, 3, H, W) pixels in [-1, 1], or (N, 3, F, H, W) of frames -> what a cache keeps, (N, ...).
        draw: VAE, what was kept, and a source of noise -> latents as the pipeline's denoiser expects them.
    """

    encode: Callable[[Any, Tensor], Tensor]
    draw: Callable[[Any, Tensor, Noise], Tensor]


def codec_of(vae: Any) -> Codec:
    """The codec of a VAE; `AutoencoderKL`'s for a class that is not known."""
    names = [kind.__name__ for kind in type(vae).__mro__]
    return next((CODECS[name] for name in names if name in CODECS), CODECS["AutoencoderKL"])


def posterior(vae: Any, pixels: Tensor) -> Tensor:
    """Moments of the posterior, (N, 2C, h, w): means, then logarithms of variances."""
    return vae.encode(pixels).latent_dist.parameters


def picture_posterior(vae: Any, pixels: Tensor) -> Tensor:
    """Moments of a VAE of videos for pictures, (N, 2C, h, w): its one frame has no axis of its own."""
    return posterior(vae, pixels.unsqueeze(2)).squeeze(2)


def frame_posterior(vae: Any, pixels: Tensor) -> Tensor:
    """Moments of a VAE of videos, (N, 2C, f, h, w); a picture is a video of one frame."""
    frames = pixels if pixels.dim() == 5 else pixels.unsqueeze(2)
    return posterior(vae, frames)


def packed_mean(vae: Any, pixels: Tensor) -> Tensor:
    """Means of the posterior in patches of two by two, (N, 4C, h/2, w/2), before the batch norm."""
    return F.pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), 2)


def code(vae: Any, pixels: Tensor) -> Tensor:
    """The latents of an autoencoder without chance, (N, C, h, w)."""
    return vae.encode(pixels).latent


def drawn(vae: Any, moments: Tensor, noise: Noise) -> Tensor:
    """A draw from the posterior, centred and scaled as `normalize` does."""
    distribution = DiagonalGaussianDistribution(moments)
    # Its own `sample()` draws in another memory format, so other numbers.
    return normalize(distribution.mean + distribution.std * noise(distribution.mean), vae.config)


def batch_normed(vae: Any, mean: Tensor, noise: Noise) -> Tensor:
    """Latents normalised by the running statistics of the VAE's batch norm."""
    del noise  # its pipeline encodes pictures without
    norm = vae.bn
    return F.batch_norm(
        mean,
        norm.running_mean.to(mean),
        norm.running_var.to(mean),
        eps=vae.config.batch_norm_eps,
    )


def scaled(vae: Any, latents: Tensor, noise: Noise) -> Tensor:
    """Latents times the VAE's scale."""
    del noise
    return latents * vae.config.scaling_factor


def normalize(latents: Tensor, config: Any) -> Tensor:
    """Latents (N, C, ...) of a VAE, centred and scaled as pipelines do: by channel, or by one number for all.

    Args:
        latents: As the VAE gives them.
        config: Of the VAE.
    """
    mean = getattr(config, "latents_mean", None)
    std = getattr(config, "latents_std", None)
    scale = getattr(config, "scaling_factor", 1.0)
    if mean is not None and std is not None:
        shape = (1, -1, *[1] * (latents.dim() - 2))
        centred = latents - latents.new_tensor(mean).view(shape)
        return centred * scale / latents.new_tensor(std).view(shape)
    shift = getattr(config, "shift_factor", None) or 0.0
    return (latents - shift) * scale


# Class of a VAE -> its codec.
CODECS = {
    "AutoencoderKL": Codec(posterior, drawn),
    "AutoencoderKLFlux2": Codec(packed_mean, batch_normed),
    "AutoencoderKLQwenImage": Codec(picture_posterior, drawn),
    "AutoencoderKLWan": Codec(frame_posterior, drawn),
    "AutoencoderDC": Codec(code, scaled),
}
