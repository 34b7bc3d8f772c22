"""Tiny random pipelines of Diffusers' own classes, one for each kind the scripts train, and pictures of 20 by 16."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)


COUNT = 8


@dataclass
class Together:
    """A pipeline, and other things that a script wants below its folder.

    Attributes:
        main: Saved in the folder itself.
        parts: Name of a folder or file -> what saves it.
    """

    main: Any
    parts: dict[str, Callable[[Path], Any]] = field(default_factory=dict)

    def save_pretrained(self, folder: Path) -> None:
        self.main.save_pretrained(folder)
        for name, save in self.parts.items():
            save(folder / name)


def write_images(folder: Path, captions: bool, count: int = COUNT) -> Path:
    """Save pictures; with `captions`, also the metadata.jsonl of an image folder."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20, 16), Image.Resampling.NEAREST).save(folder / f"{index}.png")
    if captions:
        lines = [json.dumps({"file_name": f"{index}.png", "text": f"picture {index}"}) for index in range(count)]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _clip_tokenizer() -> CLIPTokenizer:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for end in ("", "</w>"):
        vocab |= {letter + end: len(vocab) + index for index, letter in enumerate(ascii_lowercase)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _clip(kind: type) -> Any:
    sizes = {"vocab_size": 54, "hidden_size": 16, "intermediate_size": 16, "projection_dim": 16}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return kind(CLIPTextConfig(**sizes, **ids, num_hidden_layers=2, num_attention_heads=2))


def _t5() -> dict[str, Any]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in ascii_lowercase]
    config = T5Config(vocab_size=len(pieces), d_model=32, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    return {"tokenizer": T5TokenizerFast(vocab=pieces, extra_ids=0), "text_encoder": T5EncoderModel(config)}


def _vae(**config: Any) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        norm_num_groups=2,
        latent_channels=4,
        **config,
    )


def _unet(**config: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    )


def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_clip_tokenizer(),
        unet=_unet(cross_attention_dim=16),
        scheduler=diffusers.DDPMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=_unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=diffusers.DDPMScheduler(steps_offset=1, clip_sample=False),
    )


def deepfloyd() -> Any:
    t5 = _t5()
    return diffusers.IFPipeline(
        **t5,
        unet=_unet(in_channels=3, out_channels=6, cross_attention_dim=16, encoder_hid_dim=32),
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range", thresholding=True),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def sd3() -> Any:
    t5 = _t5()
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=4,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            out_channels=4,
            pos_embed_max_size=16,  # for 64 pixels, which Diffusers' own tests train at
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(CLIPTextModelWithProjection),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        text_encoder_3=t5["text_encoder"],
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        tokenizer_3=t5["tokenizer"],
    )


def flux() -> Any:
    t5 = _t5()
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=t5["text_encoder"],
        tokenizer=_clip_tokenizer(),
        tokenizer_2=t5["tokenizer"],
    )


def unconditional() -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler(steps_offset=1, clip_sample=False))


def unconditional_model() -> Any:
    """The model alone, whose configuration a script builds one from."""
    return unconditional().unet


def save_pipeline(build: Callable[[], Any], folder: Path) -> Path:
    """Save what `build` makes with the weights of seed 0."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    build().save_pretrained(folder)
    torch.set_rng_state(state)
    return folder
