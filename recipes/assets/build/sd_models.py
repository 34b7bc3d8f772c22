"""The parts of `tiny_sd`: VAE, UNet, tokenizer, text encoder, scheduler, and the pipeline made of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from emoji_images import SIZE
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


MAX_TOKENS = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_vae() -> AutoencoderKL:
    """Builds a VAE of 0.8 M parameters: 64x64x3 to 16x16x4."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,  # purely convolutional: trained on crops, used at any size
    )


def build_unet(width: int) -> UNet2DConditionModel:
    """Builds a UNet of 4.1 M parameters with eleven residual units on three levels."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=2,  # the number of heads, whatever the name says
        norm_num_groups=16,
    )


def build_tokenizer(captions: list[str], merges: int = 1000) -> CLIPTokenizer:
    """Trains CLIP's byte-level BPE on the captions; all 256 bytes stay in the vocabulary, so no text is unknown."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True), pre_tokenizers.ByteLevel(False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    pairs = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][:merges]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in pairs), BOS, EOS]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Builds a text encoder of 0.6 M parameters for the tokenizer's vocabulary."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DDIMScheduler:
    """SD's schedule, ended at zero SNR: only then can a sample be as bright as a white background is."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # no effect with trailing spacing; diffusers warns about any other value
    )


class Denoiser(torch.nn.Module):
    """UNet and text encoder together: one optimizer, one EMA, one state."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet(self.text_encoder.config.hidden_size)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, timesteps, self.text_encoder(tokens).last_hidden_state).sample


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Pads or cuts every text to the model's length, as the pipeline does."""
    kwargs = {"padding": "max_length", "max_length": MAX_TOKENS, "truncation": True, "return_tensors": "pt"}
    return tokenizer(texts, **kwargs).input_ids


def load_vae(work: Path) -> AutoencoderKL:
    """Loads the result of the phase vae."""
    if not (work / "vae").is_dir():
        raise ValueError(
            f"--output_dir must hold the result of --phase vae (a folder vae), and {str(work)!r} does not"
        )
    return AutoencoderKL.from_pretrained(work / "vae").eval()


def averaged_pipeline(work: Path, model: Denoiser, ema: EMAModel, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """Assembles the pipeline from the averaged weights."""
    averaged = Denoiser(tokenizer).eval()
    averaged.load_state_dict(model.state_dict())
    ema.copy_to(averaged.parameters())
    return StableDiffusionPipeline(
        vae=load_vae(work),
        text_encoder=averaged.text_encoder,
        tokenizer=tokenizer,
        unet=averaged.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
