"""Tiny random pipelines of models in two parts, of masked tokens, of boxes, and of precomputed texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from . import pipelines
from .latest_pipelines import TEXT
from .pipelines import Together


def _vision() -> dict[str, Any]:
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    size = {"height": 16, "width": 16}
    return {
        "image_encoder": transformers.CLIPVisionModelWithProjection(config),
        "image_processor": transformers.CLIPImageProcessor(crop_size=size, size={"shortest_edge": 16}),
    }


def _movq(norm_type: str = "spatial") -> Any:
    return diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),  # spatial norms have 32 groups, whatever is asked for
        latent_channels=4,
        norm_num_groups=8,
        norm_type=norm_type,
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def kandinsky() -> Any:
    prior = {
        **_vision(),
        "prior": diffusers.PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=4,
            embedding_dim=16,
        ),
        "text_encoder": pipelines._clip(transformers.CLIPTextModelWithProjection),
        "tokenizer": pipelines._clip_tokenizer(),
        "scheduler": diffusers.UnCLIPScheduler(prediction_type="sample", variance_type="fixed_small_log"),
    }
    # Both are zero, and image embeddings are divided by the second one.
    prior["prior"].clip_std.data.fill_(1.0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=16,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
    )
    combined = diffusers.KandinskyV22CombinedPipeline(
        unet=unet,
        scheduler=diffusers.DDPMScheduler(),
        movq=_movq(),
        **{f"prior_{name}": part for name, part in prior.items()},
    )
    return Together(combined, {"prior_pipeline": diffusers.KandinskyV22PriorPipeline(**prior).save_pretrained})


def wuerstchen() -> Any:
    from diffusers.pipelines.deprecated import wuerstchen as wuerstchen_models
    from torchvision.models import efficientnet_v2_s

    prior = {
        "prior": wuerstchen_models.WuerstchenPrior(c_in=16, c=16, c_cond=16, c_r=8, depth=4, nhead=2),
        "text_encoder": pipelines._clip(transformers.CLIPTextModel),
        "tokenizer": pipelines._clip_tokenizer(),
        "scheduler": diffusers.DDPMWuerstchenScheduler(),
    }
    decoder = wuerstchen_models.WuerstchenDiffNeXt(
        c_in=4,
        c_out=4,
        c_r=8,
        c_cond=16,
        c_hidden=[8, 8],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, False],
        effnet_embd=16,
        clip_embd=16,
    )
    combined = diffusers.WuerstchenCombinedPipeline(
        tokenizer=pipelines._clip_tokenizer(),
        text_encoder=pipelines._clip(transformers.CLIPTextModel),
        decoder=decoder,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=wuerstchen_models.PaellaVQModel(levels=1, bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=8),
        **{f"prior_{name}": part for name, part in prior.items()},
    )
    effnet = torch.nn.Module()
    effnet.backbone = efficientnet_v2_s(weights=None).features
    effnet.mapper = torch.nn.Sequential(
        torch.nn.Conv2d(1280, 16, kernel_size=1, bias=False),
        torch.nn.BatchNorm2d(16),
    )

    def save_effnet(path: Path) -> None:
        torch.save({"effnet_state_dict": effnet.state_dict()}, path)
        # Diffusers writes down that it has the classes of these models itself, where it no longer does.
        for index in path.parent.rglob("model_index.json"):
            components = json.loads(index.read_text(encoding="utf-8"))
            for name, value in components.items():
                if isinstance(value, list) and hasattr(wuerstchen_models, value[1]):
                    components[name] = [getattr(wuerstchen_models, value[1]).__module__, value[1]]
            index.write_text(json.dumps(components), encoding="utf-8")

    parts = {"prior_pipeline": diffusers.WuerstchenPriorPipeline(**prior).save_pretrained, "effnet.pt": save_effnet}
    return Together(combined, parts)


def amused() -> Any:
    return diffusers.AmusedPipeline(
        vqvae=_movq(norm_type="group"),
        tokenizer=pipelines._clip_tokenizer(),
        text_encoder=pipelines._clip(transformers.CLIPTextModelWithProjection),
        transformer=diffusers.UVit2DModel(
            hidden_size=16,
            cond_embed_dim=16,
            micro_cond_encode_dim=4,
            micro_cond_embed_dim=20,
            encoder_hidden_size=16,
            vocab_size=16,
            codebook_size=12,
            in_channels=16,
            block_out_channels=16,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=16,
            sample_size=8,
        ),
        scheduler=diffusers.AmusedScheduler(mask_token_id=15),
    )


def cogview4() -> Any:
    config = transformers.GlmConfig(**TEXT, num_hidden_layers=2, head_dim=8, vocab_size=300, pad_token_id=0)
    return diffusers.CogView4Pipeline(
        tokenizer=pipelines._t5()["tokenizer"],  # it ends every text with a token, the empty one too
        text_encoder=transformers.GlmModel(config),
        vae=pipelines._vae(shift_factor=0.0, scaling_factor=1.0),
        transformer=diffusers.CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=4,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=8,
            condition_dim=4,
            rope_axes_dim=(32, 32),
            sample_size=8,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
    )


def gligen() -> Any:
    """Boxes have texts of 768 channels, in the script's data set and so in the model."""
    pipeline = pipelines.stable_diffusion()
    config = {**pipeline.text_encoder.config.to_dict(), "hidden_size": 768}
    pipeline.register_modules(
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)),
        unet=pipelines._unet(cross_attention_dim=768, attention_type="gated"),
    )
    return pipeline


def sdxl_of_published_widths() -> Any:
    """The empty texts of a script have the widths of the published model."""
    pipeline = pipelines.sdxl()
    config = {**pipeline.text_encoder_2.config.to_dict(), "hidden_size": 2048 - 16, "projection_dim": 1280}
    widths = {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 1280 + 6 * 8}
    pipeline.register_modules(
        text_encoder_2=transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config)),
        unet=diffusers.UNet2DConditionModel.from_config(dict(pipeline.unet.config) | widths),
    )
    return pipeline


def sd3_of_embeddings() -> Any:
    """Its texts were embedded by the published encoders, whose widths the script names."""
    pipeline = pipelines.sd3()
    widths = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048}
    config = dict(pipeline.transformer.config) | widths
    pipeline.register_modules(transformer=diffusers.SD3Transformer2DModel.from_config(config))
    return pipeline


def flux_of_embeddings() -> Any:
    """As the one of SD3."""
    pipeline = pipelines.flux()
    config = dict(pipeline.transformer.config) | {"joint_attention_dim": 4096, "pooled_projection_dim": 768}
    pipeline.register_modules(transformer=diffusers.FluxTransformer2DModel.from_config(config))
    return pipeline
