"""Cached text embeddings: what the text encoders make of every caption, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.training.arguments import Arguments

from .cache import ArrayCache, build_cache, module_fingerprint, text_fingerprint


if TYPE_CHECKING:
    from accelerate import Accelerator

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]


class Captions:
    """Text embeddings of training batches.

    Args:
        texts: Caption of every row of the data.
        encode: Captions -> (N, L, D) tokens and (N, P) pooled, P perhaps 0.
        encoders: The frozen text encoders; they are moved to the device.
        args: The recipe's arguments.
        accelerator: Of the run.
        empty: Probability of training an image without its caption, for classifier-free guidance.

    Raises:
        ConfigError: The probability is not in [0, 1].
    """

    def __init__(
        self,
        texts: Sequence[str],
        encode: Encode,
        encoders: Sequence[nn.Module],
        args: Arguments,
        accelerator: Accelerator,
        empty: float = 0.0,
    ) -> None:
        if not 0 <= empty <= 1:
            raise ConfigError(f"--proportion_empty_prompts {empty} is not allowed: use a probability in [0, 1].")
        for encoder in encoders:
            encoder.requires_grad_(False).eval().to(accelerator.device)
        self._encode, self._encoders, self._accelerator, self._empty = encode, encoders, accelerator, empty
        self._path = Path(args.output.output_dir) / "cache" / "text.npy"
        self._texts = [*([""] if empty else []), *sorted(set(texts))]
        places = {text: place for place, text in enumerate(self._texts)}
        self._places = torch.tensor([places[text] for text in texts])
        self._cache: ArrayCache | None = None
        self._shape = (0, 0)

    def ready(self) -> None:
        """Compute the embeddings, or find them on disk."""
        if self._cache is not None:
            return
        with torch.no_grad():
            tokens, _ = self._encode(self._texts[:1])
        self._shape = (tokens.shape[1], tokens.shape[2])
        mark = text_fingerprint("text", *self._shape, *map(module_fingerprint, self._encoders), *self._texts)
        self._cache = build_cache(
            self._path, len(self._texts), self._compute, mark, self._accelerator, batch_size=64, title="encoding text"
        )

    def draw(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) row numbers of the data -> (N, L, D) tokens and (N, P) pooled on the device, some of no caption."""
        assert self._cache is not None
        places = self._places[rows.cpu()]
        if self._empty:
            places = torch.where(torch.rand(len(places)) < self._empty, 0, places)
        text, (length, width) = self._cache[places].to(self._accelerator.device), self._shape
        return text[:, : length * width].unflatten(1, (length, width)), text[:, length * width :]

    def _compute(self, places: Sequence[int]) -> Tensor:
        """Caption numbers -> (len, L * D + P)."""
        tokens, pooled = self._encode([self._texts[place] for place in places])
        return torch.cat([tokens.flatten(1), pooled.flatten(1)], dim=1)
