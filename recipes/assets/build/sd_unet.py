"""Phase `unet`: train the UNet and the text encoder of `tiny_sd` on cached latents."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from emoji_images import encode, load_images
from muon import Muon
from pictures import save_sheet
from sd_models import Denoiser, averaged_pipeline, build_scheduler, build_tokenizer, load_vae, tokenize
from sessions import Clock, batch_indices, learning_rate, load_state, save_state, set_rate, ticks
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm


def build_optimizer(model: Denoiser, name: str) -> torch.optim.Optimizer:
    """Builds the optimizer of ``--unet_optimizer``."""
    if name == "muon":
        return Muon(model)
    return torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)


def denoising_loss(
    model: Denoiser, scheduler: DDIMScheduler, latents: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Returns the unweighted v-prediction loss (min-SNR weights would drop the zero-SNR step altogether)."""
    count = latents.shape[0]
    noise = torch.randn_like(latents)
    # One timestep from each of `count` equal ranges: less variance than independent draws.
    timesteps = ((torch.arange(count) + torch.rand(count)) * (scheduler.config.num_train_timesteps / count)).long()
    timesteps = timesteps[torch.randperm(count)]
    target = scheduler.get_velocity(latents, noise, timesteps)
    # On CPU the math kernel is a third faster than the fused one at these short sequences.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        output = model(scheduler.add_noise(latents, noise, timesteps), timesteps, ids)
    return F.mse_loss(output.float(), target)


def train_unet(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs the phase unet; leaves ``unet_state.pt`` and, at every save, a ``contact_sheet.png`` of the average."""
    torch.manual_seed(args.seed)
    images, captions = load_images("twemoji")
    vae, tokenizer, scheduler = load_vae(work), build_tokenizer(captions), build_scheduler()
    mean, std = encode(vae, images)
    tokens, empty = tokenize(tokenizer, captions), tokenize(tokenizer, [""])
    model, path = Denoiser(tokenizer), work / "unet_state.pt"
    optimizer = build_optimizer(model, args.unet_optimizer)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    state = load_state(path)
    if state:
        model.load_state_dict(state["model"])
        ema.load_state_dict({**state["ema"], "decay": args.ema_decay})
        if state.get("name", "adamw") == args.unet_optimizer:  # another optimizer starts with empty moments
            optimizer.load_state_dict(state["optimizer"])
    clock = Clock(args.unet_minutes, args.unet_steps, state.get("spent", 0.0))
    first, losses, saved = state.get("step", 0), list(state.get("losses", [])), time.monotonic()
    step = first - 1

    def save() -> None:
        save_state(
            path,
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            name=args.unet_optimizer,
            ema=ema.state_dict(),
            step=step + 1,
            losses=losses,
            spent=clock.spent(),
        )

    for step, progress in ticks(clock, first, "unet"):
        torch.manual_seed(args.seed + step)
        set_rate(optimizer, learning_rate(args.unet_lr, step, progress))
        index = batch_indices(step, args.unet_batch_size, len(images), args.seed)
        latents = mean[index] + std[index] * torch.randn_like(mean[index])
        ids = torch.where(torch.rand(len(index), 1) < args.caption_dropout, empty, tokens[index])
        loss = denoising_loss(model, scheduler, latents, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(round(loss.item(), 5))
        if step % 100 == 0:
            tqdm.write(f"unet step {step} ({clock.spent():.0f} s): loss {np.mean(losses[-100:]):.4f}")
        if time.monotonic() - saved > 60 * args.save_minutes:
            save()
            save_sheet(averaged_pipeline(work, model, ema, tokenizer), work)
            saved = time.monotonic()
    save()
    return {
        "images": len(images),
        "steps": step + 1,
        "batch_size": args.unet_batch_size,
        "seconds": round(clock.spent()),
        "mean_loss_per_500_steps": [round(float(np.mean(losses[i : i + 500])), 4) for i in range(0, len(losses), 500)],
        "last_100_loss": round(float(np.mean(losses[-100:])), 4),
    }
