"""The denoising objective of Diffusers' text-to-image script: noise, target and loss weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import compute_snr
from torch import Tensor

from autoprog_diffusion.evaluation.draws import Draw


SPREAD = 16  # draws per sample that spread timesteps are picked from


@dataclass(frozen=True)
class NoiseSettings:
    """Settings of the denoising objective; names are those of Diffusers' script.

    Attributes:
        noise_offset: Scale of a per-channel offset of the noise.
        input_perturbation: Scale of an extra perturbation of the input noise.
        timestep_sampling: `independent`, or `stratified`: spread evenly over a batch.
        snr_gamma: Gamma of the min-SNR loss weighting; None for equal weights.
        prediction_type: Output of the model: epsilon, v_prediction or sample; None as the noise scheduler says.
    """

    noise_offset: float = 0.0
    input_perturbation: float = 0.0
    timestep_sampling: str = "independent"
    snr_gamma: float | None = None
    prediction_type: str | None = None


@dataclass(frozen=True)
class NoisyBatch:
    """One batch of a denoising objective.

    Attributes:
        latents: (N, C, H, W) input of the model.
        timesteps: (N,) integers.
        target: (N, C, H, W) the output that the model should have.
    """

    latents: Tensor
    timesteps: Tensor
    target: Tensor


def add_noise(clean: Tensor, noise_scheduler: Any, settings: NoiseSettings) -> NoisyBatch:
    """Mix (N, C, H, W) latents with noise at random timesteps."""
    noise, perturbed = draw_noise(clean, settings)
    timesteps = draw_timesteps(
        len(clean),
        noise_scheduler=noise_scheduler,
        settings=settings,
        device=clean.device,
    )
    return NoisyBatch(
        latents=noise_scheduler.add_noise(clean, perturbed, timesteps),
        timesteps=timesteps,
        target=denoising_target(noise_scheduler, clean, noise, timesteps),
    )


def add_drawn_noise(clean: Tensor, noise_scheduler: Any, draw: Draw) -> NoisyBatch:
    """Mix (N, C, H, W) latents with the noise of a draw at its timesteps; the noise has no offset."""
    noise = draw.noise(clean)
    timesteps = draw.timesteps(noise_scheduler.config.num_train_timesteps)
    return NoisyBatch(
        latents=noise_scheduler.add_noise(clean, noise, timesteps),
        timesteps=timesteps,
        target=denoising_target(noise_scheduler, clean, noise, timesteps),
    )


def draw_noise(latents: Tensor, settings: NoiseSettings) -> tuple[Tensor, Tensor]:
    """Noise for (N, C, H, W) latents: that of the target, and that which is added, perturbed on request.

    Sources: noise offset, crosslabs.org "Diffusion with offset noise"; input perturbation, arXiv 2301.11706.
    """
    noise = torch.randn_like(latents)
    if settings.noise_offset:
        offset = torch.randn(*latents.shape[:2], 1, 1, device=latents.device)
        noise = noise + settings.noise_offset * offset
    if not settings.input_perturbation:
        return noise, noise
    return noise, noise + settings.input_perturbation * torch.randn_like(noise)


def draw_timesteps(count: int, noise_scheduler: Any, settings: NoiseSettings, device: torch.device) -> Tensor:
    """(N,) integer timesteps for N samples, uniform each; spread over the batch on request."""
    steps = noise_scheduler.config.num_train_timesteps
    return sample_times(lambda n: torch.randint(0, steps, (n,), device=device), count, settings.timestep_sampling)


def sample_times(draw: Callable[[int], Tensor], count: int, sampling: str) -> Tensor:
    """(N,) times for N samples, `independent` or `stratified`; `draw(n)` gives n independent ones."""
    if sampling == "independent":
        return draw(count)
    return spread(draw(count * SPREAD), count)


def spread(draws: Tensor, count: int) -> Tensor:
    """N of many independent draws, one from each of N even parts of the sorted draws, in random order.

    Every value alone is distributed as a draw; together they cover the distribution, so that the loss of a batch
    varies less. After the low-discrepancy times of Variational Diffusion Models (arXiv 2107.00630, appendix I.1),
    without needing the inverse of the distribution function.

    Args:
        draws: (N * M,) of any type; M values make one part.
        count: N.
    """
    parts = draws.sort().values.view(count, -1)
    picked = parts[:, int(torch.randint(parts.shape[1], (1,)))]
    return picked[torch.randperm(count)]


def denoising_target(noise_scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The output that the denoiser should have, (N, C, H, W), by the scheduler's prediction type.

    Raises:
        ValueError: The scheduler's prediction type is not one of the three.
    """
    kind = noise_scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return noise_scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise ValueError(f"prediction_type={kind!r} is not known: use epsilon, v_prediction or sample.")


def denoising_loss(
    prediction: Tensor, target: Tensor, timesteps: Tensor, noise_scheduler: Any, snr_gamma: float | None
) -> Tensor:
    """Mean squared error, () float32, weighted by min-SNR-gamma (arXiv 2303.09556) on request.

    Args:
        prediction: (N, C, H, W), any float type.
        target: (N, C, H, W).
        timesteps: (N,) integers.
        noise_scheduler: A Diffusers DDPM-like scheduler.
        snr_gamma: None for equal weights.
    """
    if snr_gamma is None:
        return F.mse_loss(prediction.float(), target.float())
    return denoising_losses(
        prediction,
        target=target,
        timesteps=timesteps,
        noise_scheduler=noise_scheduler,
        snr_gamma=snr_gamma,
    ).mean()


def denoising_losses(
    prediction: Tensor, target: Tensor, timesteps: Tensor, noise_scheduler: Any, snr_gamma: float | None
) -> Tensor:
    """The loss of every sample, (N,) float32; arguments as `denoising_loss` takes them."""
    error = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
    if snr_gamma is None:
        return error
    snr = compute_snr(noise_scheduler, timesteps)
    weights = snr.clamp(max=snr_gamma)
    kind = noise_scheduler.config.prediction_type
    if kind == "epsilon":
        # min(snr, gamma) / snr, written so that a terminal SNR of zero gives its limit, 1.
        weights = (snr_gamma / snr).clamp(max=1.0)
    elif kind == "v_prediction":
        weights = weights / (snr + 1)
    return error * weights
