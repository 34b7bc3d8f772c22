"""Z-Image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from autoprog_diffusion.data.captions import Embeddings

from ..text_length import Reader
from .base import Family
from .prompts import chat_reader


class ZImage(Family):
    """Z-Image. Its time runs from noise at 0 to the picture at 1, and its output is the other way round."""

    pipeline_class = "ZImagePipeline"
    transformer_class = "ZImageTransformer2DModel"
    guidance_scale = 5.0
    most_text = 512
    limit = 1024
    trims = True
    text_setting = "cap_feat_dim"

    @property
    def patch(self) -> int:
        """Latents per token and side: of the pipeline, which packs none itself and whose model has several sizes."""
        return 2

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels: neither it nor its parts say."""
        return 128 * self.vae_factor

    def output_channels(self) -> int:
        """Channels of the transformer's output."""
        return self.config.in_channels

    def readers(self, length: int) -> list[Reader]:
        """One language model, which is given a question to think about."""
        return [chat_reader(self.pipeline.tokenizer, length, thinking=True)]

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, length, D) tokens without padding, zeros behind them, and their (len, length) mask."""
        texts, _ = self.pipeline.encode_prompt(
            list(captions),  # the pipeline writes into it
            device=self.pipeline.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
        )
        lengths = torch.tensor([len(text) for text in texts], device=texts[0].device)
        places = torch.arange(length, device=lengths.device)
        longest = texts[0].new_zeros(length, texts[0].shape[1])
        tokens = pad_sequence([*texts, longest], batch_first=True)[:-1]
        return tokens, (places < lengths[:, None]).to(tokens)

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output with its sign changed, (N, C, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        lengths = pooled.sum(dim=1).long().tolist()
        output = denoiser(
            list(noisy.unsqueeze(2)),
            1 - times,
            [text[:length] for text, length in zip(tokens, lengths)],
            return_dict=False,
        )[0]
        return -torch.stack(list(output)).squeeze(2)
