"""Tiny random pipelines of the newer families, as `pipelines.py` has of the first."""

from __future__ import annotations

from typing import Any

import diffusers
import tokenizers
import torch
import transformers

from . import pipelines


def inpaint() -> Any:
    """Stable Diffusion whose UNet also gets a mask and the masked picture."""
    pipeline = pipelines.stable_diffusion()
    parts = {name: getattr(pipeline, name) for name in ("text_encoder", "tokenizer", "scheduler")}
    return diffusers.StableDiffusionInpaintPipeline(
        **parts,
        vae=_vae_of_eighths(),
        unet=pipelines._unet(cross_attention_dim=16, in_channels=9),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _vae_of_eighths() -> Any:
    """A VAE with the scale that ControlNets of Stable Diffusion are made for."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        latent_channels=4,
    )


def stable_diffusion_eighths() -> Any:
    pipeline = pipelines.stable_diffusion()
    pipeline.register_modules(vae=_vae_of_eighths())
    return pipeline


def sdxl_eighths() -> Any:
    pipeline = pipelines.sdxl()
    pipeline.register_modules(vae=_vae_of_eighths())
    return pipeline


def sdxl_edm() -> Any:
    """With the scheduler that a script chooses its training by."""
    pipeline = pipelines.sdxl()
    pipeline.register_modules(scheduler=diffusers.EDMEulerScheduler())
    return pipeline


def controlnet() -> Any:
    return diffusers.ControlNetModel.from_unet(pipelines.stable_diffusion().unet)


def controlnet_sdxl() -> Any:
    return diffusers.ControlNetModel.from_unet(pipelines.sdxl().unet)


def controlnet_sd3() -> Any:
    transformer = pipelines.sd3().transformer
    return diffusers.SD3ControlNetModel.from_transformer(transformer, num_layers=2, num_extra_conditioning_channels=0)


def sd3_deep() -> Any:
    """More blocks than `SD3ControlNetModel.from_transformer` copies."""
    pipeline = pipelines.sd3()
    config = dict(pipeline.transformer.config) | {"num_layers": 14}
    pipeline.register_modules(transformer=diffusers.SD3Transformer2DModel.from_config(config))
    return pipeline


def _qwen_tokenizer() -> Any:
    """A token for every byte, and Qwen's chat."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: index for index, token in enumerate([*alphabet, *special])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    return tokenizer


def _qwen3(kind: type, layers: int = 2) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": layers, "vocab_size": 300}
    config = transformers.Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=2, head_dim=8)
    return kind(config)


def _gemma2() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 64, "head_dim": 8}
    return transformers.Gemma2Model(
        transformers.Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=2, sliding_window=2)
    )


def flux2_klein() -> Any:
    return diffusers.Flux2KleinPipeline(
        transformer=diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        text_encoder=_qwen3(transformers.Qwen3ForCausalLM),
        tokenizer=_qwen_tokenizer(),
        vae=diffusers.AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 4),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():
        # They are empty memory.
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    return diffusers.ZImagePipeline(
        transformer=transformer,
        text_encoder=_qwen3(transformers.Qwen3Model),
        tokenizer=_qwen_tokenizer(),
        vae=pipelines._vae(shift_factor=0.1159, scaling_factor=0.3611),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def qwen_image() -> Any:
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=_qwen_tokenizer(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=4,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(8, 4, 4),
            axes_lens=(64, 32, 32),
            cap_feat_dim=16,
        ),
        text_encoder=_gemma2(),
        tokenizer=pipelines._t5()["tokenizer"],
        vae=pipelines._vae(shift_factor=0.06, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def sana() -> Any:
    sides = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8)}
    sides |= {"qkv_multiscales": ((), (5,)), "layers_per_block": (1, 1)}
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
        ),
        text_encoder=_gemma2(),
        tokenizer=pipelines._t5()["tokenizer"],
        vae=diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            **{f"encoder_{name}": value for name, value in sides.items()},
            **{f"decoder_{name}": value for name, value in sides.items()},
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
