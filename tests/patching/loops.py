"""A small training script of Diffusers' kind, which runs in seconds, and ways to change it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoprog_diffusion.patching.analyse import analyse
from autoprog_diffusion.patching.options import AverageChoice, Options, Schedule
from autoprog_diffusion.patching.source import read_source
from autoprog_diffusion.patching.transform import patch


SCRIPT = '''\
"""A small loop, written for these tests."""

import os
import random

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel


def main(args):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    set_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    ema_unet = EMAModel(unet.parameters(), model_cls=UNet2DModel, model_config=unet.config)

    # Optimizer creation
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=1e-2,
    )
    lr_scheduler = get_scheduler("constant", optimizer=optimizer)
    unet, optimizer, lr_scheduler = accelerator.prepare(unet, optimizer, lr_scheduler)
    args.max_train_steps = args.max_train_steps or 4

    global_step = 0
    if args.resume:
        accelerator.load_state(args.resume)
        global_step = int(args.resume.rpartition("-")[2])
    for step in range(2 * global_step, 2 * args.max_train_steps):
        generator = torch.Generator().manual_seed(step)
        with accelerator.accumulate(unet):
            images = torch.randn(2, 3, 8, 8, generator=generator)
            times = torch.randint(1000, (2,), generator=generator)
            loss = unet(images, times).sample.square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()

        if accelerator.sync_gradients:
            ema_unet.step(unet.parameters())
            global_step += 1
            if global_step % 2 == 0:
                accelerator.save_state(os.path.join(args.output_dir, f"checkpoint-{global_step}"))
        if global_step >= args.max_train_steps:
            break

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unet = accelerator.unwrap_model(unet)
        if args.use_ema:
            ema_unet.copy_to(unet.parameters())
        unet.save_pretrained(args.output_dir)
    accelerator.end_training()
'''


def changed(*pairs: tuple[str, str], script: str = SCRIPT) -> str:
    """The script with texts, each of which is in it once, replaced by others."""
    for old, new in pairs:
        assert script.count(old) == 1, (script.count(old), old)
        script = script.replace(old, new)
    return script


def line_of(script: str, text: str) -> int:
    """Number of the first line that holds a text."""
    return next(number for number, line in enumerate(script.splitlines(), start=1) if text in line)


def patch_text(
    folder: Path,
    script: str | bytes,
    *,
    comments: bool = False,
    schedule: Schedule = "late",
    average: AverageChoice = "auto",
    **given: str,
) -> str:
    """A script as it is patched."""
    path = folder / "train.py"
    path.write_bytes(script if isinstance(script, bytes) else script.encode())
    options = Options(schedule=schedule, average=average, comments=comments)
    return patch(analyse(read_source(path), **given), options).decode("latin-1")


def added(before: str, after: str) -> Sequence[str]:
    """The lines of one text that are not in the other, without their indentation."""
    known = before.splitlines()
    return [line.strip() for line in after.splitlines() if line not in known]
