"""The variational bound that trains a learned variance (Nichol and Dhariwal, arXiv 2102.09672, section 3.1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def variational_bound(
    epsilon: Tensor, variance: Tensor, clean: Tensor, noisy: Tensor, timesteps: Tensor, noise_scheduler: Any
) -> Tensor:
    """The bound of one denoising step in bits per dimension, () float32; it trains the variance alone.

    As in the DiT paper it is added unweighted to the error of the predicted noise, which it sends no gradient to.

    Args:
        epsilon: (N, C, H, W) predicted noise.
        variance: (N, C, H, W) where the log variance lies between its bounds: -1 the lower, 1 the upper.
        clean: (N, C, H, W) latents.
        noisy: (N, C, H, W) the same with noise.
        timesteps: (N,) integers.
        noise_scheduler: A Diffusers scheduler with `alphas_cumprod`.
    """
    epsilon, variance, clean, noisy = (tensor.float() for tensor in (epsilon.detach(), variance, clean, noisy))
    alphas_bar = noise_scheduler.alphas_cumprod.to(device=noisy.device, dtype=torch.float64)
    shifted = torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])
    betas = 1 - alphas_bar / shifted
    posterior = betas * (1 - shifted) / (1 - alphas_bar)  # variance of q(x_{t-1} | x_t, x_0); 0 at step 0
    posterior[0] = posterior[1]

    def at(values: Tensor) -> Tensor:
        return values[timesteps].float().view(-1, 1, 1, 1)

    lower, upper = at(posterior.log()), at(betas.log())
    log_variance = lower + (variance + 1) / 2 * (upper - lower)
    to_clean = at(betas * shifted.sqrt() / (1 - alphas_bar))
    to_noisy = at((1 - shifted) * (alphas_bar / shifted).sqrt() / (1 - alphas_bar))
    predicted = (noisy - at((1 - alphas_bar).sqrt()) * epsilon) / at(alphas_bar.sqrt())
    mean, true_mean = to_clean * predicted + to_noisy * noisy, to_clean * clean + to_noisy * noisy
    divergence = 0.5 * (log_variance - lower - 1 + (lower - log_variance).exp())
    divergence = divergence + 0.5 * (true_mean - mean).square() * (-log_variance).exp()
    likelihood = -discretized_log_likelihood(clean, mean, 0.5 * log_variance)
    first = (timesteps == 0).view(-1, 1, 1, 1)
    return torch.where(first, likelihood, divergence).mean() / math.log(2.0)


def discretized_log_likelihood(values: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of `values` under a Gaussian that is cut into the 256 bins of 8-bit images in [-1, 1]."""
    above = torch.special.ndtr((values - mean + 1 / 255) * (-log_std).exp())
    below = torch.special.ndtr((values - mean - 1 / 255) * (-log_std).exp())
    above = torch.where(values > 0.999, torch.ones_like(above), above)
    below = torch.where(values < -0.999, torch.zeros_like(below), below)
    return (above - below).clamp(min=1e-12).log()
