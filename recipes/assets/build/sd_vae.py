"""Phase `vae`: train the autoencoder of `tiny_sd` on augmented emoji, then centre its latents."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from emoji_images import SIZE, load_extra_images, load_images, shrink, to_pixels
from PIL import Image
from sd_models import build_vae
from sessions import Clock, learning_rate, load_state, save_state, set_rate, ticks
from tqdm import tqdm


def outline(images: torch.Tensor) -> torch.Tensor:
    """Draws dark lines along the edges of the images, as many styles do, for a VAE that can reproduce such lines."""
    high = F.max_pool2d(images, 3, stride=1, padding=1)
    low = -F.max_pool2d(-images, 3, stride=1, padding=1)
    edges = ((high - low).amax(1, keepdim=True) - 0.3).clamp(0, 0.4) / 0.4
    return images * (1 - edges) - edges


def recolour(images: torch.Tensor) -> torch.Tensor:
    """Random colours per image: a random mixing matrix near the identity, channel order, contrast, brightness."""
    count = images.shape[0]
    mix = torch.eye(3).expand(count, 3, 3) + 0.15 * torch.randn(count, 3, 3)
    mix = mix / mix.sum(-1, keepdim=True)
    order = torch.argsort(torch.rand(count, 3), dim=1)
    permuted = torch.gather(mix, 1, order[..., None].expand(-1, -1, 3))
    mix = torch.where(torch.rand(count, 1, 1) < 0.4, permuted, mix)
    # White is moved to 0 first, so that the mixing leaves the background white.
    mixed = torch.einsum("bij,bjhw->bihw", mix, images - 1) * (1 + 0.2 * torch.randn(count, 1, 1, 1)) + 1
    mixed = torch.where(torch.rand(count, 1, 1, 1) < 0.1, -mixed, mixed)
    return torch.where(torch.rand(count, 1, 1, 1) < 0.6, mixed, images).clamp(-1, 1)


def vae_batch(images: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Mostly crops of 32 pixels (a quarter of the work), the rest whole images at 32, 48 or 64 pixels."""
    batch = to_pixels(images[torch.randint(0, images.shape[0], (batch_size,))])
    kind = torch.rand(()).item()
    if kind < 0.25:
        size = 32 if kind < 0.15 else 48
        batch = F.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    elif kind < 0.85:
        top, left = torch.randint(0, SIZE - 31, (2,)).tolist()
        batch = batch[:, :, top : top + 32, left : left + 32]
    shift = torch.randint(-4, 5, (2,)).tolist()
    batch = torch.roll(F.pad(batch, (4, 4, 4, 4), value=1.0), shift, dims=(2, 3))[:, :, 4:-4, 4:-4]
    if torch.rand(()) < 0.5:
        batch = batch.flip(3)
    lined = torch.where(torch.rand(batch_size, 1, 1, 1) < 0.3, outline(batch), batch)
    return recolour(lined)


def vae_loss(vae: AutoencoderKL, batch: torch.Tensor, kl_weight: float) -> tuple[torch.Tensor, float]:
    """Returns the loss of one batch (pixels, edges, KL) and its mean squared error alone."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(batch).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        output = vae.decode((mean + std * torch.randn_like(mean)).to(batch.dtype)).sample.float()
    square = F.mse_loss(output, batch)
    edges = sum(F.l1_loss(output.diff(dim=dim), batch.diff(dim=dim)) for dim in (2, 3))
    divergence = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).mean()
    loss = 2 * square + 0.5 * F.l1_loss(output, batch) + 0.5 * edges + kl_weight * divergence
    return loss, square.item()


def psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Mean over images of the PSNR of a reconstruction from the posterior mean, in dB."""
    values = []
    with torch.no_grad():
        for chunk in images.split(64):
            pixels = to_pixels(chunk)
            output = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
            values.append(-10 * torch.log10(((output - pixels) / 2).square().mean((1, 2, 3))))
    return torch.cat(values).mean().item()


def reconstructions(vae: AutoencoderKL, images: torch.Tensor) -> np.ndarray:
    """Lays the images out in a row, their reconstructions below."""
    with torch.no_grad():
        output = vae.decode(vae.encode(to_pixels(images)).latent_dist.mode()).sample
    output = ((output.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    rows = [torch.cat(list(row), dim=2) for row in (images, output)]
    return torch.cat(rows, dim=1).permute(1, 2, 0).numpy()


def whiten(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Folds each latent channel's mean and spread into the 1x1 convolutions, then measures ``scaling_factor``.

    A pipeline knows one factor for all channels and no shift; the fold gives the UNet centred channels of equal size.
    """
    with torch.no_grad():
        latents = torch.cat([vae.encode(to_pixels(chunk)).latent_dist.mean for chunk in images.split(64)])
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        channels = mean.numel()
        quant, post = vae.quant_conv, vae.post_quant_conv
        quant.weight[:channels] /= std[:, None, None, None]
        quant.bias[:channels] = (quant.bias[:channels] - mean) / std
        quant.bias[channels:] -= 2 * std.log()
        post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
        post.weight *= std[None, :, None, None]
        latents = torch.cat([vae.encode(to_pixels(chunk)).latent_dist.sample() for chunk in images.split(64)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))


def save_vae(path: Path, vae: AutoencoderKL, optimizer: Any, *, step: int, average: float, clock: Clock) -> None:
    """Saves what the phase vae needs to go on."""
    save_state(
        path, model=vae.state_dict(), optimizer=optimizer.state_dict(), step=step, average=average, spent=clock.spent()
    )


def train_vae(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs the phase vae; leaves ``vae/`` and ``vae_sheet.png`` (Twemoji, then OpenMoji, each above its copy)."""
    torch.manual_seed(args.seed)
    twemoji, _ = load_images("twemoji")
    images = torch.cat([twemoji, load_extra_images(args.data_dir)]) if args.data_dir else twemoji
    vae, path = build_vae(), work / "vae_state.pt"
    optimizer = torch.optim.AdamW(vae.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    state = load_state(path)
    if state:
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    clock = Clock(args.vae_minutes, args.vae_steps, state.get("spent", 0.0))
    first, average, saved = state.get("step", 0), state.get("average", 0.1), time.monotonic()
    step = first - 1
    for step, progress in ticks(clock, first, "vae"):
        torch.manual_seed(args.seed + step)  # per step: a resumed run draws what an uninterrupted one would
        set_rate(optimizer, learning_rate(args.vae_lr, step, progress))
        loss, square = vae_loss(vae, vae_batch(images, args.vae_batch_size), args.kl_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average += 0.01 * (square - average)
        if step % 250 == 0:
            tqdm.write(f"vae step {step} ({clock.spent():.0f} s): mse {average:.5f}")
        if time.monotonic() - saved > 60 * args.save_minutes:
            save_vae(path, vae, optimizer, step=step + 1, average=average, clock=clock)
            saved = time.monotonic()
    save_vae(path, vae, optimizer, step=step + 1, average=average, clock=clock)
    seconds = round(clock.spent())
    vae.eval()
    whiten(vae, twemoji[::4])
    vae.save_pretrained(work / "vae")
    openmoji, _ = load_images("openmoji")
    sheet = [reconstructions(vae, data[:: len(data) // 16][:16]) for data in (twemoji, openmoji)]
    Image.fromarray(np.concatenate(sheet)).save(work / "vae_sheet.png")
    seen, unseen = twemoji[::4], openmoji[::4]
    return {
        "images": len(images),
        "steps": step + 1,
        "batch_size": args.vae_batch_size,
        "seconds": seconds,
        "train_mse": average,
        "scaling_factor": vae.config.scaling_factor,
        "psnr_twemoji": psnr(vae, seen),
        "psnr_openmoji_unseen": {size: psnr(vae, shrink(unseen, size)) for size in (SIZE, 48, 32)},
    }
