"""Tiny random pipelines of the newest families of pictures, which read text with language models."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from . import pipelines
from .more_pipelines import _qwen3, _qwen_tokenizer
from .pipelines import Together


TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
# A chat whose messages hold lists of texts, which is how Flux2 asks Mistral.
LISTED_CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% for part in m['content'] %}{{ part['text'] }}{% endfor %}\n{% endfor %}"
)


def _flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )


def _qwen_image_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def _pixtral_processor() -> Any:
    tokenizer = _qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    return transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(),
        tokenizer=tokenizer,
        chat_template=LISTED_CHAT,
    )


def _mistral3(layers: int) -> Any:
    text = transformers.MistralConfig(**TEXT, num_hidden_layers=layers, vocab_size=300, head_dim=8)
    vision = transformers.PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=259)
    return transformers.Mistral3ForConditionalGeneration(config)


def _flux2_transformer(texts: int, **config: Any) -> Any:
    """One that reads `texts` layers of a text encoder."""
    return diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16 * texts,
        axes_dims_rope=(4, 4, 4, 4),
        **config,
    )


def flux2(layers: int = 2, texts: int = 1) -> Any:
    return diffusers.Flux2Pipeline(
        transformer=_flux2_transformer(texts),
        text_encoder=_mistral3(layers),
        tokenizer=_pixtral_processor(),
        vae=_flux2_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def flux2_deep() -> Any:
    """With the layers of text that the pipeline reads unless it is told others."""
    return flux2(layers=31, texts=3)


def flux2_klein_deep() -> Any:
    return diffusers.Flux2KleinPipeline(
        transformer=_flux2_transformer(3, guidance_embeds=False),
        text_encoder=_qwen3(transformers.Qwen3ForCausalLM, layers=28),
        tokenizer=_qwen_tokenizer(),
        vae=_flux2_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def _qwen3_vl(layers: int = 2) -> Any:
    text = {
        **TEXT,
        "num_hidden_layers": layers,
        "head_dim": 8,
        "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "deepstack_visual_indexes": [0],
    }
    return transformers.Qwen3VLModel(transformers.Qwen3VLConfig(text_config=text, vision_config=vision))


def krea2() -> Any:
    return diffusers.Krea2Pipeline(
        transformer=diffusers.Krea2Transformer2DModel(
            in_channels=16,
            num_layers=4,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=16,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder=_qwen3_vl(),
        tokenizer=_qwen_tokenizer(),
        vae=_qwen_image_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder_select_layers=(1, 2),
    )


def ideogram4() -> Any:
    sizes = {
        "in_channels": 16,
        "num_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "mrope_section": (4, 2, 2),
        "llm_features_dim": 13 * 16,  # of the layers that the pipeline reads, the last of which is the 36th
    }
    tokenizer = _qwen_tokenizer()
    tokenizer.chat_template = LISTED_CHAT
    return diffusers.Ideogram4Pipeline(
        transformer=diffusers.Ideogram4Transformer2DModel(**sizes),
        unconditional_transformer=diffusers.Ideogram4Transformer2DModel(**sizes),
        text_encoder=_qwen3_vl(layers=36),
        tokenizer=tokenizer,
        vae=_flux2_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def _llama() -> Any:
    """The fourth text encoder of HiDream."""
    config = transformers.LlamaConfig(**TEXT, num_hidden_layers=2, vocab_size=300)
    return transformers.LlamaForCausalLM(config)


def llama_with_tokenizer() -> Any:
    """In one folder, which scripts load both from."""
    return Together(_llama(), {"": _qwen_tokenizer().save_pretrained})


def hidream() -> Any:
    t5 = pipelines._t5()
    return diffusers.HiDreamImagePipeline(
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[32, 16],
            text_emb_dim=32,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=[0, 1, 0, 1],  # of every block
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=pipelines._vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=pipelines._clip(transformers.CLIPTextModelWithProjection),
        text_encoder_2=pipelines._clip(transformers.CLIPTextModelWithProjection),
        text_encoder_3=t5["text_encoder"],
        text_encoder_4=_llama(),
        tokenizer=pipelines._clip_tokenizer(),
        tokenizer_2=pipelines._clip_tokenizer(),
        tokenizer_3=t5["tokenizer"],
        tokenizer_4=_qwen_tokenizer(),
    )
