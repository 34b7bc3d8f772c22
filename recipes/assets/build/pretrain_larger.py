"""Pretrains a UNet and an SD3 transformer of 20 to 40 M parameters at latents of 32x32, on Twemoji at 128 pixels.

Latents are those of tiny_sd's VAE, text that of its encoder; both are kept as they are. The first half of the time
goes to pictures of 64 pixels, where a step takes a quarter. A session that is cut goes on from its state, which is
saved every few minutes. The weights are not kept in the repository::

    python recipes/assets/build/pretrain_larger.py --model unet --minutes 90
    python recipes/assets/build/pretrain_larger.py --model flow --minutes 90
    python recipes/assets/build/pretrain_larger.py --model unet --export   # runs/larger/unet, a Diffusers pipeline
    python recipes/assets/build/pretrain_larger.py --model unet --steps 2 --images 8 --batch_size 2   # to try it
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cached_latents import ASSETS, zero_output
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from emoji_images import encode
from sd_models import MAX_TOKENS, build_scheduler
from sd_unet import denoising_loss
from sessions import Clock, batch_indices, learning_rate, load_state, save_state, set_rate, ticks
from tiny_flow import flow_loss, flow_scheduler
from torch import Tensor, nn

from autoprog_diffusion.data.emoji import emoji_dataset
from autoprog_diffusion.tasks.tiny_pipelines import flow_pipeline


PIXELS = 128
SIDE = PIXELS // 4  # of the latents
TEXT = 128  # width of the text encoder; SD3 has two of them side by side
DROPPED = 0.1  # captions


def build_unet() -> UNet2DConditionModel:
    """A UNet of three resolutions, text from the second one on."""
    model = UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 192, 320),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=4,
    )
    nn.init.zeros_(model.conv_out.weight)
    return model


def build_transformer() -> SD3Transformer2DModel:
    """An SD3 transformer of 6 joint blocks of width 384: 256 image and 16 text tokens."""
    model = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=12,
        joint_attention_dim=2 * TEXT,
        caption_projection_dim=384,
        pooled_projection_dim=2 * TEXT,
        pos_embed_max_size=SIDE // 2,
        qk_norm="rms_norm",
    )
    for block in model.transformer_blocks:
        zero_output(block.norm1.linear, block.norm1_context.linear)
    zero_output(model.norm_out.linear, model.proj_out)
    return model


BUILD = {"unet": build_unet, "flow": build_transformer}


def pipeline_of(name: str, model: Any) -> StableDiffusionPipeline | StableDiffusion3Pipeline:
    """The Diffusers pipeline around a model; all its other parts are those of tiny_sd."""
    if name == "flow":
        return flow_pipeline(model, flow_scheduler(), ASSETS)
    return StableDiffusionPipeline.from_pretrained(ASSETS / "tiny_sd", unet=model)


class Data:
    """Cached posteriors of one size, (N, 4, side, side), and the text of every caption, the empty one last."""

    def __init__(self, pipeline: Any, *, pixels: int, count: int | None) -> None:
        data = emoji_dataset("twemoji", size=pixels)
        rows = range(len(data) if count is None else min(count, len(data)))
        pictures = np.stack([np.asarray(data[row]["image"].convert("RGB")) for row in rows])
        self.mean, self.std = encode(pipeline.vae.eval(), torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous())
        captions = [*(data[row]["text"] for row in rows), ""]
        with torch.no_grad():
            if isinstance(pipeline, StableDiffusionPipeline):
                tokens, _ = pipeline.encode_prompt(captions, torch.device("cpu"), 1, False)
                pooled = None
            else:
                tokens, _, pooled, _ = pipeline.encode_prompt(
                    captions, None, None, max_sequence_length=MAX_TOKENS, do_classifier_free_guidance=False
                )
        self.tokens = tokens[:, :MAX_TOKENS]
        self.pooled = pooled

    def latents(self, index: Tensor) -> Tensor:
        """One draw of every posterior."""
        return self.mean[index] + self.std[index] * torch.randn_like(self.mean[index])


def loss_of(name: str, model: Any, data: Data, index: Tensor) -> Tensor:
    """v-prediction of the UNet, rectified flow of the transformer; 10 % of the captions are dropped."""
    latents = data.latents(index)
    if name == "flow":
        with torch.autocast("cpu", torch.bfloat16):
            return flow_loss(model, latents, index, data.tokens, data.pooled, fill=MAX_TOKENS)
    rows = torch.where(torch.rand(len(index)) < DROPPED, len(data.tokens) - 1, index)
    return denoising_loss(partial(predict, model, data), build_scheduler(), latents, rows)  # type: ignore[arg-type]


def predict(model: Any, data: Data, noisy: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
    """The UNet's output, with text by rows of the captions."""
    return model(noisy, timesteps, data.tokens[rows]).sample


def train(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train for the given time or steps, all sessions together; leaves `<model>_state.pt`."""
    torch.manual_seed(args.seed)
    model = BUILD[args.model]()
    pipeline = pipeline_of(args.model, model)
    low, high = (Data(pipeline, pixels=pixels, count=args.images) for pixels in (PIXELS // 2, PIXELS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    path = work / f"{args.model}_state.pt"
    state = load_state(path)
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
    clock = Clock(args.minutes, args.steps, state.get("spent", 0.0))
    first = state.get("step", 0)
    losses = list(state.get("losses", []))
    saved = time.monotonic()
    step = first - 1

    def save() -> None:
        tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        save_state(path, **tensors, step=step + 1, losses=losses, spent=clock.spent())

    for step, progress in ticks(clock, first, args.model):
        torch.manual_seed(args.seed + step)
        set_rate(optimizer, learning_rate(args.lr, step, progress))
        data = low if progress < args.low_share else high
        loss = loss_of(args.model, model, data, batch_indices(step, args.batch_size, len(data.mean), args.seed))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(round(loss.item(), 5))
        if time.monotonic() - saved > 60 * args.save_minutes:
            save()
            print(f"{args.model} step {step} ({clock.spent():.0f} s): loss {np.mean(losses[-100:]):.4f}", flush=True)
            saved = time.monotonic()
    save()
    return {"steps": step + 1, "seconds": round(clock.spent()), "last_100_loss": float(np.mean(losses[-100:]))}


def export(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write the averaged weights as fp16, in their pipeline.

    Raises:
        ValueError: Nothing was trained.
    """
    state = load_state(work / f"{args.model}_state.pt")
    if not state:
        raise ValueError(f"--output_dir {str(work)!r} holds no state of {args.model}: train first.")
    model: Any = BUILD[args.model]()
    model.load_state_dict(state["model"])
    ema = EMAModel(model.parameters())
    ema.load_state_dict(state["ema"])
    ema.copy_to(model.parameters())
    folder = work / args.model
    pipeline_of(args.model, model.half()).save_pretrained(folder)
    return {"steps": state["step"], "folder": str(folder)}


def main(argv: list[str] | None = None) -> None:
    """Train or export, and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=BUILD, required=True)
    parser.add_argument("--export", action="store_true", help="write the weights instead of training")
    parser.add_argument("--output_dir", default="runs/larger")
    parser.add_argument("--minutes", type=float, default=90.0, help="of all sessions together")
    parser.add_argument("--low_share", type=float, default=0.5, help="part of the time with pictures of half the size")
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--images", type=int, help="use only so many")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--ema_decay", type=float, default=0.995)
    parser.add_argument("--save_minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    work = Path(args.output_dir)
    work.mkdir(parents=True, exist_ok=True)
    print(json.dumps((export if args.export else train)(args, work)))


if __name__ == "__main__":
    main()
