"""The tokenizers of a pipeline: each text encoder needs one of its own, whose tokens it knows."""

from __future__ import annotations

from typing import Any

from autoprog_diffusion.growth.errors import GrowthError


# Ends of the names of a pipeline's text encoders and their tokenizers.
NUMBERS = ("", "_2", "_3")


def check_tokenizers(name: str, pipeline: Any) -> None:
    """Refuse tokenizers that do not fit their text encoders: captions would fail, or mean something else.

    Args:
        name: Of the pipeline.
        pipeline: May have no text encoders at all.

    Raises:
        GrowthError: The message names the tokenizer and both numbers.
    """
    for number in NUMBERS:
        encoder = getattr(pipeline, f"text_encoder{number}", None)
        tokenizer = getattr(pipeline, f"tokenizer{number}", None)
        if encoder is None:
            continue
        part = f"tokenizer{number}"
        if tokenizer is None:
            raise GrowthError(f"{name} has text_encoder{number} but no {part}: download it again, or save it whole.")
        _check_length(name, part, tokenizer, encoder)
        _check_tokens(name, part, tokenizer, encoder)


def _check_length(name: str, part: str, tokenizer: Any, encoder: Any) -> None:
    """Refuse a tokenizer that pads to more tokens than the encoder has positions.

    T5 has no such end. Language models turn their positions, and their pipelines say how many tokens they take.
    """
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if getattr(encoder.config, "rope_parameters", None) is not None:
        positions = None
    length = tokenizer.model_max_length
    if not isinstance(length, int | float):
        raise GrowthError(
            f"the {part} of {name} has model_max_length={length!r}: only a number is allowed. Write the number of "
            f"tokens that its text encoder takes into {part}/tokenizer_config.json."
        )
    if positions is not None and length > positions:
        raise GrowthError(
            f"the {part} of {name} has model_max_length={length}, and its text encoder takes {positions} tokens at "
            f"most: write model_max_length: {positions} into {part}/tokenizer_config.json."
        )


def _check_tokens(name: str, part: str, tokenizer: Any, encoder: Any) -> None:
    """Refuse a tokenizer with more tokens than the encoder has embeddings."""
    known = encoder.get_input_embeddings().num_embeddings
    tokens = len(tokenizer)
    if tokens > known:
        raise GrowthError(
            f"the {part} of {name} has {tokens} tokens, and its text encoder knows {known}: they belong to different "
            "models, or tokens were added without text_encoder.resize_token_embeddings(len(tokenizer))."
        )
