"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings

from ..text_length import Reader
from .base import Family


class QwenImage(Family):
    """Qwen-Image. Its VAE is one of videos; a picture is one frame."""

    pipeline_class = "QwenImagePipeline"
    transformer_class = "QwenImageTransformer2DModel"
    vae_class = "AutoencoderKLQwenImage"
    guidance_scale = 4.0
    most_text = 512
    packed = True
    limit = 1024
    trims = True

    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return self.pipeline.vae.config.z_dim

    def output_channels(self) -> int:
        """Channels of the transformer's output: its configuration counts those of one latent."""
        return self.config.out_channels * self.config.patch_size**2

    def idle(self) -> tuple[str, ...]:
        """Of the last block, what makes a text of which no picture is made."""
        last = f"transformer_blocks.{self.config.num_layers - 1}"
        return f"{last}.txt_mlp.", f"{last}.attn.to_add_out."

    def readers(self, length: int) -> list[Reader]:
        """One language model; the template's own tokens, but for its end, are dropped after the encoder."""
        pipeline = self.pipeline
        added = pipeline.prompt_template_encode_start_idx
        return [Reader("tokenizer", pipeline.tokenizer, length, pipeline.prompt_template_encode.format, added)]

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, length, D) tokens and their (len, length) mask."""
        device = self.pipeline.text_encoder.device
        tokens, mask = self.pipeline.encode_prompt(list(captions), device=device, max_sequence_length=length)
        if mask is None:  # no padding
            mask = tokens.new_ones(tokens.shape[:2])
        room = length - tokens.shape[1]
        return F.pad(tokens, (0, 0, 0, room)), F.pad(mask.to(tokens), (0, room))

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        count, _, height, width = noisy.shape
        guidance = None
        if self.config.guidance_embeds:
            guidance = torch.full((count,), self.guidance, device=noisy.device, dtype=noisy.dtype)
        rows, columns = height // 2, width // 2
        output = denoiser(
            hidden_states=F.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2),
            timestep=times,
            guidance=guidance,
            encoder_hidden_states=tokens,
            encoder_hidden_states_mask=pooled.long(),
            img_shapes=[[(1, rows, columns)]] * count,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, (rows, columns)), 2)

    def drawing(self, scale: float, length: int) -> dict[str, Any]:
        """Arguments of the pipeline's call: its guidance has another name, and needs a text to guide away from."""
        drawing: dict[str, Any] = {"true_cfg_scale": scale, "negative_prompt": "", "max_sequence_length": length}
        if self.config.guidance_embeds:
            drawing["guidance_scale"] = self.guidance
        return drawing
