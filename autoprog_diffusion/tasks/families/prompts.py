"""Captions as several families hand them to their text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from autoprog_diffusion.data.captions import Embeddings

from ..text_length import Reader


def chat_reader(tokenizer: Any, length: int, *, thinking: bool) -> Reader:
    """A language model that is given the caption as a question of a chat.

    Args:
        tokenizer: Of the model.
        length: Tokens that are kept.
        thinking: Whether the template lets the model think before it answers.
    """

    def template(caption: str) -> str:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": caption}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )

    return Reader("tokenizer", tokenizer, length, template)


def where_given(captions: Sequence[str], told: Embeddings, bare: Embeddings) -> Embeddings:
    """Text with the pipeline's instruction, and without it for captions that are empty.

    Args:
        captions: One a row.
        told: (len, L, D) tokens and (len, L) mask, with the instruction.
        bare: (1, L, D) and (1, L), of the empty text without it.
    """
    given = torch.tensor([bool(caption) for caption in captions], device=told[0].device)
    tokens = torch.where(given.view(-1, 1, 1), told[0], bare[0])
    return tokens, torch.where(given.view(-1, 1), told[1], bare[1].to(told[1]))
