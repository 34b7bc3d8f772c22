"""The variational bound, against the same quantities computed another way."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from autoprog_diffusion.tasks.learned_variance import discretized_log_likelihood, variational_bound


SCHEDULER = DDPMScheduler(beta_schedule="linear", variance_type="learned_range")


def denoised(step: int, epsilon: Tensor, variance: Tensor, noisy: Tensor) -> Normal:
    """p(x_{t-1} | x_t) as Diffusers' own scheduler samples it: its mean, and the spread of its noise."""
    scheduler = DDPMScheduler.from_config(SCHEDULER.config, clip_sample=False)
    output = torch.cat([epsilon, variance], dim=1)
    many = [
        scheduler.step(output, step, noisy, generator=torch.Generator().manual_seed(seed)).prev_sample
        for seed in (0, 1)
    ]
    noises = [
        torch.randn(noisy.shape, generator=torch.Generator().manual_seed(seed), dtype=noisy.dtype) for seed in (0, 1)
    ]
    std = (many[1] - many[0]) / (noises[1] - noises[0])
    return Normal(many[0] - std * noises[0], std)


def true_posterior(step: int, clean: Tensor, noisy: Tensor) -> Normal:
    """q(x_{t-1} | x_t, x_0): the product of two Gaussians."""
    bar = SCHEDULER.alphas_cumprod.double()
    before, alpha = bar[step - 1], bar[step] / bar[step - 1]
    precision = alpha / (1 - alpha) + 1 / (1 - before)
    mean = (alpha.sqrt() / (1 - alpha) * noisy + before.sqrt() / (1 - before) * clean) / precision
    return Normal(mean, precision**-0.5)


@pytest.mark.parametrize("step", [1, 40, 999])
def test_the_bound_is_the_divergence_from_what_the_scheduler_samples(step: int) -> None:
    torch.manual_seed(0)
    clean, epsilon, noise = (torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(3))
    variance = torch.rand_like(clean) * 2 - 1
    noisy = SCHEDULER.add_noise(clean, noise, torch.tensor([step, step]))
    literal = kl_divergence(true_posterior(step, clean, noisy), denoised(step, epsilon, variance, noisy))
    ours = variational_bound(
        epsilon, variance, clean=clean, noisy=noisy, timesteps=torch.tensor([step, step]), noise_scheduler=SCHEDULER
    )
    assert ours.item() == pytest.approx(literal.mean().item() / math.log(2), rel=2e-3)


def test_a_perfect_prediction_costs_nothing_and_a_wrong_variance_something() -> None:
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    timesteps = torch.tensor([300, 700])
    noisy = SCHEDULER.add_noise(clean, noise, timesteps)
    right = variational_bound(
        noise, -torch.ones_like(noise), clean=clean, noisy=noisy, timesteps=timesteps, noise_scheduler=SCHEDULER
    )
    wrong = variational_bound(
        noise, torch.full_like(noise, 50.0), clean=clean, noisy=noisy, timesteps=timesteps, noise_scheduler=SCHEDULER
    )
    assert abs(right.item()) < 1e-4
    assert wrong.item() > 1e-3


def test_the_first_step_is_the_likelihood_of_8_bit_values() -> None:
    torch.manual_seed(0)
    clean = torch.rand(2, 1, 3, 3) * 1.6 - 0.8
    noisy = SCHEDULER.add_noise(clean, torch.randn_like(clean), torch.tensor([0, 0]))
    epsilon, variance = torch.randn_like(clean), torch.rand_like(clean)
    bar = SCHEDULER.alphas_cumprod
    # At step 0 the mean is the predicted clean value; the lower bound is borrowed from step 1, the upper is beta.
    mean = (noisy - (1 - bar[0]).sqrt() * epsilon) / bar[0].sqrt()
    lower = ((1 - bar[1] / bar[0]) * (1 - bar[0]) / (1 - bar[1])).log()
    log_std = 0.5 * (lower + (variance + 1) / 2 * ((1 - bar[0]).log() - lower))
    literal = Normal(mean, log_std.exp())
    probability = literal.cdf(clean + 1 / 255) - literal.cdf(clean - 1 / 255)
    ours = variational_bound(
        epsilon, variance, clean=clean, noisy=noisy, timesteps=torch.tensor([0, 0]), noise_scheduler=SCHEDULER
    )
    assert ours.item() == pytest.approx(-probability.clamp(min=1e-12).log().mean().item() / math.log(2), rel=1e-3)


def test_the_bins_hold_all_probability() -> None:
    centres = torch.linspace(-1, 1, 256)
    for mean, log_std in ((0.3, -1.0), (-0.98, -3.0), (1.5, 0.0)):
        total = discretized_log_likelihood(centres, torch.tensor(mean), torch.tensor(log_std)).exp().sum()
        assert total.item() == pytest.approx(1.0, abs=1e-4)


def test_only_the_variance_gets_a_gradient() -> None:
    torch.manual_seed(0)
    clean, epsilon, variance = torch.randn(3, 4, 4, 4).unsqueeze(1).unbind(0)
    epsilon.requires_grad_(True)
    variance.requires_grad_(True)
    noisy = SCHEDULER.add_noise(clean, torch.randn_like(clean), torch.tensor([10]))
    variational_bound(
        epsilon, variance, clean=clean, noisy=noisy, timesteps=torch.tensor([10]), noise_scheduler=SCHEDULER
    ).backward()
    assert epsilon.grad is None
    assert variance.grad is not None
    assert variance.grad.abs().sum() > 0
