"""The variational bound that trains a learned variance (Nichol and Dhariwal, arXiv 2102.09672, section 3.1)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .objective import NoisyBatch, denoising_loss, denoising_losses


def loss_with_variance(
    output: Tensor,
    *,
    clean: Tensor,
    noisy: NoisyBatch,
    noise_scheduler: Any,
    snr_gamma: float | None,
    trains_variance: bool,
    each: bool = False,
) -> Tensor:
    """Error of the prediction, plus the variational bound where the variance is learned, float32.

    Args:
        output: (N, C, H, W), or (N, 2C, H, W) with a variance behind the prediction.
        clean: (N, C, H, W) latents.
        noisy: The same with noise.
        noise_scheduler: A Diffusers DDPM-like scheduler.
        snr_gamma: Of the min-SNR weighting of the error; None for equal weights.
        trains_variance: Whether the bound is added.
        each: Whether every sample has its own, (N,), instead of their mean, ().
    """
    channels = clean.shape[1]
    prediction = output[:, :channels]
    error = denoising_losses if each else denoising_loss
    loss = error(
        prediction,
        target=noisy.target,
        timesteps=noisy.timesteps,
        noise_scheduler=noise_scheduler,
        snr_gamma=snr_gamma,
    )
    if not trains_variance:
        return loss
    return loss + variational_bound(
        prediction,
        output[:, channels:],
        clean=clean,
        noisy=noisy.latents,
        timesteps=noisy.timesteps,
        noise_scheduler=noise_scheduler,
        each=each,
    )


def variational_bound(
    epsilon: Tensor,
    variance: Tensor,
    *,
    clean: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    noise_scheduler: Any,
    each: bool = False,
) -> Tensor:
    """The bound of one denoising step in bits per dimension, float32; it trains the variance alone.

    As in the DiT paper it is added unweighted to the error of the predicted noise, which gets no gradient from it.

    Args:
        epsilon: (N, C, H, W) predicted noise.
        variance: (N, C, H, W) place of the log variance between its bounds: -1 the lower, 1 the upper.
        clean: (N, C, H, W) latents.
        noisy: (N, C, H, W) the same with noise.
        timesteps: (N,) integers.
        noise_scheduler: A Diffusers scheduler with `alphas_cumprod`.
        each: Whether every sample has its own, (N,), instead of their mean, ().
    """
    epsilon = epsilon.detach().float()
    clean = clean.float()
    noisy = noisy.float()
    # Tables over all timesteps, in float64; `at` takes a batch's entries.
    alpha_bar = noise_scheduler.alphas_cumprod.to(device=noisy.device, dtype=torch.float64)
    previous = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    beta = 1 - alpha_bar / previous
    noise = 1 - alpha_bar
    posterior = beta * (1 - previous) / noise
    # It is 0 at step 0, where its logarithm is not needed.
    posterior[0] = posterior[1]
    at = partial(_entries, timesteps=timesteps)
    # The mean of q(x_{t-1} | x_t, x_0) is a weighted sum of x_0 and x_t.
    clean_weight = at(beta * previous.sqrt() / noise)
    noisy_part = at((1 - previous) * (alpha_bar / previous).sqrt() / noise) * noisy
    true_mean = clean_weight * clean + noisy_part
    # The model's p(x_{t-1} | x_t) has its prediction of x_0 there.
    predicted = (noisy - at(noise.sqrt()) * epsilon) / at(alpha_bar.sqrt())
    mean = clean_weight * predicted + noisy_part
    lower = at(posterior.log())
    log_variance = _log_variance(variance.float(), lower, at(beta.log()))
    nats = gaussian_divergence(true_mean - mean, lower, log_variance)
    # The last step is a likelihood of the data instead.
    likelihood = discretized_log_likelihood(clean, mean, 0.5 * log_variance)
    nats = torch.where((timesteps == 0).view(-1, 1, 1, 1), -likelihood, nats)
    return _mean(nats, each) / math.log(2.0)


def _mean(values: Tensor, each: bool) -> Tensor:
    """Of every sample, (N,), or of all, ()."""
    return values.mean(dim=(1, 2, 3)) if each else values.mean()


def _entries(table: Tensor, timesteps: Tensor) -> Tensor:
    """Entries of a table at (N,) timesteps, (N, 1, 1, 1) float32."""
    return table[timesteps].float().view(-1, 1, 1, 1)


def _log_variance(place: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Log variance at a place between its bounds: -1 is the lower, 1 the upper."""
    share = (place + 1) / 2
    return lower + share * (upper - lower)


def gaussian_divergence(distance: Tensor, log_variance: Tensor, other: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a Gaussian from another one, in nats, elementwise.

    Args:
        distance: Of the means.
        log_variance: Of the first Gaussian.
        other: Log variance of the other one.
    """
    variances = other - log_variance - 1 + (log_variance - other).exp()
    means = 0.5 * distance.square() * (-other).exp()
    return 0.5 * variances + means


def discretized_log_likelihood(values: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of `values` under a Gaussian that is cut into the 256 bins of 8-bit images in [-1, 1]."""
    distance = values - mean
    precision = (-log_std).exp()
    above = torch.special.ndtr((distance + 1 / 255) * precision)
    below = torch.special.ndtr((distance - 1 / 255) * precision)
    # The outermost bins reach to infinity.
    above = above.masked_fill(values > 0.999, 1.0)
    below = below.masked_fill(values < -0.999, 0.0)
    return (above - below).clamp(min=1e-12).log()
