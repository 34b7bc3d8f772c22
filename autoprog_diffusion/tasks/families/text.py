"""How many tokens of text a run keeps: as many as the pipeline takes, and no padding that has no effect."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autoprog_diffusion.data.caption_text import Caption
from autoprog_diffusion.growth.errors import ConfigError

from ..text_length import cut_texts, different, longest
from .base import Family


def check_length(family: Family, length: int) -> None:
    """Refuse a number of tokens that the pipeline does not take.

    Raises:
        ConfigError: The message names the number and those allowed.
    """
    least = 1 if family.trims else 0
    if not least <= length <= family.limit:
        raise ConfigError(f"--max_sequence_length {length} is not allowed: use {least} to {family.limit}.")


def fit_length(family: Family, length: int, texts: Iterable[Caption], say: Callable[[str], object]) -> int:
    """Tokens to keep of every caption.

    Args:
        family: Of the pipeline.
        length: Tokens that the pipeline keeps.
        texts: Captions of the data.
        say: Is told how many captions are cut.
    """
    captions = different(texts)
    readers = family.readers(length)
    for sentence in cut_texts(readers, captions):
        say(sentence)
    return min(length, longest(readers, [*captions, ""])) if family.trims else length
