"""The variational bound that trains a learned variance (Nichol and Dhariwal, arXiv 2102.09672, section 3.1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def variational_bound(
    epsilon: Tensor, variance: Tensor, *, clean: Tensor, noisy: Tensor, timesteps: Tensor, noise_scheduler: Any
) -> Tensor:
    """The bound of one denoising step in bits per dimension, () float32; it trains the variance alone.

    As in the DiT paper it is added unweighted to the error of the predicted noise, which gets no gradient from it.

    Args:
        epsilon: (N, C, H, W) predicted noise.
        variance: (N, C, H, W) place of the log variance between its bounds: -1 the lower, 1 the upper.
        clean: (N, C, H, W) latents.
        noisy: (N, C, H, W) the same with noise.
        timesteps: (N,) integers.
        noise_scheduler: A Diffusers scheduler with `alphas_cumprod`.
    """
    epsilon = epsilon.detach().float()
    variance = variance.float()
    clean = clean.float()
    noisy = noisy.float()
    alphas_bar = noise_scheduler.alphas_cumprod.to(device=noisy.device, dtype=torch.float64)
    previous = torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])
    betas = 1 - alphas_bar / previous
    posterior = betas * (1 - previous) / (1 - alphas_bar)  # variance of q(x_{t-1} | x_t, x_0); 0 at step 0
    posterior[0] = posterior[1]

    def at(values: Tensor) -> Tensor:
        return values[timesteps].float().view(-1, 1, 1, 1)

    lower = at(posterior.log())
    upper = at(betas.log())
    log_variance = lower + (variance + 1) / 2 * (upper - lower)
    # Mean of q(x_{t-1} | x_t, x_0): weights of x_0, which the model predicts, and of x_t.
    clean_weight = at(betas * previous.sqrt() / (1 - alphas_bar))
    noisy_weight = at((1 - previous) * (alphas_bar / previous).sqrt() / (1 - alphas_bar))
    predicted = (noisy - at((1 - alphas_bar).sqrt()) * epsilon) / at(alphas_bar.sqrt())
    mean = clean_weight * predicted + noisy_weight * noisy
    true_mean = clean_weight * clean + noisy_weight * noisy
    # Kullback-Leibler divergence of two Gaussians.
    divergence = 0.5 * (log_variance - lower - 1 + (lower - log_variance).exp())
    divergence = divergence + 0.5 * (true_mean - mean).square() * (-log_variance).exp()
    likelihood = -discretized_log_likelihood(clean, mean, 0.5 * log_variance)
    first = (timesteps == 0).view(-1, 1, 1, 1)
    return torch.where(first, likelihood, divergence).mean() / math.log(2.0)


def discretized_log_likelihood(values: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of `values` under a Gaussian that is cut into the 256 bins of 8-bit images in [-1, 1]."""
    distance = values - mean
    precision = (-log_std).exp()
    above = torch.special.ndtr((distance + 1 / 255) * precision)
    below = torch.special.ndtr((distance - 1 / 255) * precision)
    above = torch.where(values > 0.999, torch.ones_like(above), above)
    below = torch.where(values < -0.999, torch.zeros_like(below), below)
    return (above - below).clamp(min=1e-12).log()
