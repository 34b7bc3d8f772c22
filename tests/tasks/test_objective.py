"""Targets, weights and noise against the formulas of the papers, written out."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from autoprog_diffusion.tasks.objective import (
    SPREAD,
    NoiseSettings,
    denoising_loss,
    denoising_target,
    draw_noise,
    draw_timesteps,
    spread,
)


STEPS = torch.tensor([0, 1, 500, 998, 999])
KINDS = ("epsilon", "v_prediction", "sample")


def scheduler(kind: str, zero_snr: bool = False) -> DDPMScheduler:
    return DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=zero_snr)


def randn(seed: int) -> Tensor:
    return torch.randn(len(STEPS), 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def alphas(noise_scheduler: DDPMScheduler) -> Tensor:
    """The literal product of 1 - beta, in float64."""
    return torch.cumprod(1 - noise_scheduler.betas.double(), 0)[STEPS]


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_formulas(kind: str) -> None:
    noise_scheduler, latents, noise = scheduler(kind), randn(0), randn(1)
    alpha = alphas(noise_scheduler).view(-1, 1, 1, 1)
    literal = {
        "epsilon": noise,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * latents,
        "sample": latents,
    }[kind]
    target = denoising_target(noise_scheduler, latents, noise, STEPS)
    torch.testing.assert_close(target, literal.float(), rtol=1e-5, atol=1e-5)


def test_an_unknown_prediction_type_is_refused() -> None:
    noise_scheduler = scheduler("epsilon")
    noise_scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match=r"'flow'.*epsilon, v_prediction or sample"):
        denoising_target(noise_scheduler, randn(0), randn(1), STEPS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_formulas(kind: str, gamma: float) -> None:
    noise_scheduler, prediction, target = scheduler(kind), randn(0), randn(1)
    total = 0.0
    for index, alpha in enumerate(alphas(noise_scheduler).tolist()):
        snr = alpha / (1 - alpha)
        weight = {"epsilon": min(snr, gamma) / snr, "v_prediction": min(snr, gamma) / (snr + 1)}.get(
            kind, min(snr, gamma)
        )
        error = (prediction[index].double() - target[index].double()).square().mean().item()
        total += weight * error / len(STEPS)
    loss = denoising_loss(prediction, target, STEPS, noise_scheduler, gamma)
    assert loss.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gamma_the_loss_is_the_plain_mean(kind: str) -> None:
    prediction, target = randn(0), randn(1)
    loss = denoising_loss(prediction.bfloat16(), target, STEPS, scheduler(kind), None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((prediction.bfloat16().float() - target).square().mean().item(), rel=1e-6)


def test_v_prediction_with_zero_terminal_snr_stays_finite() -> None:
    noise_scheduler, latents, noise = scheduler("v_prediction", zero_snr=True), randn(0), randn(1)
    assert noise_scheduler.alphas_cumprod[-1] < 1e-6
    target = denoising_target(noise_scheduler, latents, noise, STEPS)
    torch.testing.assert_close(target[-1], -latents[-1], rtol=0, atol=1e-3)  # all noise: v is minus the image
    prediction = randn(2).requires_grad_()
    loss = denoising_loss(prediction, target, STEPS, noise_scheduler, 5.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert prediction.grad[-1].abs().max() < 1e-6  # weight SNR / (SNR + 1) is 0 there
    assert prediction.grad[2].abs().max() > 0


def test_plain_noise_is_one_standard_normal_draw() -> None:
    latents = torch.zeros(64, 4, 16, 16)
    torch.manual_seed(0)
    noise, mixed = draw_noise(latents, NoiseSettings())
    torch.manual_seed(0)
    assert torch.equal(noise, torch.randn_like(latents))
    assert mixed is noise


def test_noise_offset_shifts_whole_channels() -> None:
    latents = torch.zeros(256, 4, 16, 16)
    torch.manual_seed(0)
    noise, mixed = draw_noise(latents, NoiseSettings(noise_offset=0.5))
    assert mixed is noise
    means = noise.mean(dim=(2, 3))  # of 256 values: own variance 1/256, the offset's 0.25
    assert noise.shape == latents.shape
    assert means.std().item() == pytest.approx((0.25 + 1 / 256) ** 0.5, rel=0.1)
    assert (noise - means[:, :, None, None]).std().item() == pytest.approx(1.0, rel=0.02)
    assert torch.corrcoef(means.T).fill_diagonal_(0).abs().max() < 0.25  # channels are independent


def test_input_perturbation_leaves_the_target_alone() -> None:
    latents = torch.zeros(64, 4, 16, 16)
    torch.manual_seed(0)
    noise, mixed = draw_noise(latents, NoiseSettings(input_perturbation=0.1))
    torch.manual_seed(0)
    assert torch.equal(noise, torch.randn_like(latents))
    extra = mixed - noise
    assert extra.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([extra.flatten(), noise.flatten()]))[0, 1].item()) < 0.02


CPU = torch.device("cpu")


def test_independent_timesteps_are_one_plain_draw() -> None:
    torch.manual_seed(0)
    drawn = draw_timesteps(32, scheduler("epsilon"), NoiseSettings(), CPU)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.randint(0, 1000, (32,)))


def test_stratified_timesteps_cover_the_range_and_each_stays_uniform() -> None:
    torch.manual_seed(0)
    args, count, repeats = NoiseSettings(timestep_sampling="stratified"), 8, 4000
    drawn = torch.stack([draw_timesteps(count, scheduler("epsilon"), args, CPU) for _ in range(repeats)]).double()
    assert drawn.min() >= 0
    assert drawn.max() <= 999
    for place in range(count):  # no place in the batch prefers a part of the range
        shares = torch.histc(drawn[:, place].float(), bins=10, min=0, max=1000) / repeats
        assert (shares - 0.1).abs().max() < 0.02  # four standard errors
    independent = 1000**2 / 12 / count
    assert drawn.mean(1).var().item() < independent / 4  # what the spread is for


def test_spread_picks_one_value_of_every_part() -> None:
    """Against the literal text of its docstring, one part after the other."""
    draws, count = torch.randn(6 * SPREAD), 6
    ordered = sorted(draws.tolist())
    parts = [set(ordered[at : at + SPREAD]) for at in range(0, len(ordered), SPREAD)]
    for seed in range(20):
        torch.manual_seed(seed)
        picked = spread(draws, count).tolist()
        assert sorted(next(n for n, part in enumerate(parts) if value in part) for value in picked) == [*range(count)]


@pytest.mark.parametrize("count", [1, 3])
def test_stratified_timesteps_of_any_batch(count: int) -> None:
    args = NoiseSettings(timestep_sampling="stratified")
    assert draw_timesteps(count, scheduler("epsilon"), args, CPU).shape == (count,)
