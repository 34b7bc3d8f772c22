"""Texts that are longer than a text encoder: they are cut as the pipeline cuts them, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autoprog_diffusion.data.caption_text import Caption


def as_it_is(caption: str) -> str:
    """A caption that enters its tokenizer without a template."""
    return caption


@dataclass(frozen=True)
class Reader:
    """How a pipeline's tokenizer is given a caption.

    Attributes:
        part: Name of the tokenizer in the pipeline.
        tokenizer: From transformers.
        length: Tokens that it keeps.
        template: Caption -> the text that it is given.
        added: Tokens of the template that are dropped after the encoder, and do not count.
    """

    part: str
    tokenizer: Any
    length: int
    template: Callable[[str], str] = as_it_is
    added: int = 0

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of every caption, uncut."""
        texts = [self.template(caption) for caption in captions]
        if not texts:
            return []
        # Said without a warning for each text that is longer than the tokenizer's own limit.
        tokens = self.tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        return [len(ids) - self.added for ids in tokens]


def different(texts: Iterable[Caption]) -> list[str]:
    """Every caption once, in order; a text may be a list of captions."""
    captions: set[str] = set()
    for text in texts:
        captions.update([text] if isinstance(text, str) else text)
    return sorted(captions)


def longest(readers: Iterable[Reader], captions: Sequence[str]) -> int:
    """Tokens of the longest caption, at least 1."""
    return max((count for reader in readers for count in reader.lengths(captions)), default=1)


def cut_texts(readers: Iterable[Reader], captions: Sequence[str]) -> list[str]:
    """A sentence on every tokenizer that cuts some of the captions.

    Args:
        readers: Of the pipeline.
        captions: Each different one once.
    """
    sentences = []
    for reader in readers:
        cut = sum(count > reader.length for count in reader.lengths(captions))
        if cut:
            sentences.append(
                f"{cut} of {len(captions)} captions have more than the {reader.length} tokens that {reader.part} "
                "keeps: they are cut there, as the pipeline does."
            )
    return sentences
