"""What the tests train: a random Stable Diffusion pipeline of a few kilobytes, and a folder of captioned pictures."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
import tyro
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan
from autoprog_diffusion.tasks.sd_to_sdxl import sdxl_from_sd
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.training.arguments import growth_config
from autoprog_diffusion.training.build import make_accelerator
from autoprog_diffusion.training.flag_checks import explicit_wins
from autoprog_diffusion.training.recipe_arguments import Arguments


COUNT = 24
MODES = ("RGB", "RGBA", "L", "LA", "P")


def build_pipeline(folder: Path) -> Path:
    """Save a pipeline with random weights: 64-pixel images, VAE factor 4, ten growable blocks."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for end in ("", "</w>"):
        vocab |= {letter + end: len(vocab) + index for index, letter in enumerate(ascii_lowercase)}
    text = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    torch.set_rng_state(state)
    return folder


def build_sdxl(folder: Path) -> Path:
    """Save the same as a Stable Diffusion XL pipeline in which sizes and pooled text have an effect."""
    with tempfile.TemporaryDirectory() as source:
        pipeline: Any = sdxl_from_sd(load_pipeline(str(build_pipeline(Path(source)))))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    pipeline.save_pretrained(folder)
    return folder


def write_images(folder: Path, count: int = COUNT) -> Path:
    """Save pictures of several modes, wide and tall, with a caption each in metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    random, lines = np.random.default_rng(0), []
    for index in range(count):
        size = (40, 32) if index % 2 else (32, 40)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 4), dtype=np.uint8), "RGBA")
        image = coarse.resize(size, Image.Resampling.NEAREST)
        mode = MODES[index % len(MODES)]
        (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(folder / f"{index:02d}.png")
        lines.append(json.dumps({"file_name": f"{index:02d}.png", "text": f"picture {ascii_lowercase[index]}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def parse(*flags: object) -> Arguments:
    """The recipe's arguments for a command line."""
    words = [str(flag) for flag in flags]
    return explicit_wins(tyro.cli(Arguments, args=words), words)


def accelerator_of(args: Arguments) -> Accelerator:
    """The accelerator that a recipe makes."""
    train = args.train
    return make_accelerator(
        args.output,
        accumulation=train.gradient_accumulation_steps,
        mixed_precision=train.mixed_precision,
        seed=train.seed,
    )


def growth_of(args: Arguments, multiple: int) -> tuple[GrowthConfig, GrowthPlan | None]:
    """The growth settings that a recipe makes."""
    ema_decay = args.train.ema_decay if args.train.use_ema else None
    return growth_config(args.growth, multiple=multiple, ema_decay=ema_decay, seed=args.train.seed)
