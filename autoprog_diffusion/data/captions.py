"""Text embeddings of the captions, computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import ConfigError

from .cache import ArrayCache, CacheType, build_cache, module_fingerprint, text_fingerprint
from .caption_text import Caption
from .errors import DataError
from .placement import on_device


if TYPE_CHECKING:
    from accelerate import Accelerator

HALF = 31  # bits of a row's random number that say whether its caption is dropped
Embeddings = tuple[Tensor, Tensor]  # (N, L, D) tokens and (N, P) pooled, P perhaps 0
Encode = Callable[[list[str]], Embeddings]


@dataclass(eq=False)
class Captions:
    """Text embeddings of training batches.

    Attributes:
        texts: Caption of every row of the data, or a list of captions of which one is drawn.
        encode: Captions -> their embeddings.
        encoders: The frozen text encoders; they are on the device while they encode.
        accelerator: Of the run.
        folder: Where the cache is kept.
        empty: Probability of training an image without its caption, for classifier-free guidance.
        dtype: Of the numbers in the cache.

    Raises:
        ConfigError: The probability is not in [0, 1].
    """

    texts: Sequence[Caption]
    encode: Encode
    encoders: Sequence[nn.Module]
    accelerator: Accelerator
    _: KW_ONLY
    folder: Path
    empty: float = 0.0
    dtype: CacheType = "float32"
    _cache: ArrayCache | None = None
    _tokens: tuple[int, ...] = ()  # L and D of one caption

    def __post_init__(self) -> None:
        if not 0 <= self.empty <= 1:
            raise ConfigError(f"--proportion_empty_prompts {self.empty} is not allowed: use a probability in [0, 1].")
        for encoder in self.encoders:
            encoder.requires_grad_(False).eval()
        different = {""} if self.empty else set()
        options = []
        for text in self.texts:
            texts = [text] if isinstance(text, str) else text
            options.append(texts)
            different.update(texts)
        # Every different caption once; the empty one, which `draw` needs for dropout, comes first.
        self._different = sorted(different)
        places = {text: place for place, text in enumerate(self._different)}
        # Places of all captions, row after row: where each row's begin, and how many they are.
        flat = chain.from_iterable(options)
        self._places = torch.tensor([places[text] for text in flat])
        self._counts = torch.tensor([len(texts) for texts in options])
        self._starts = self._counts.cumsum(0) - self._counts

    def ready(self) -> None:
        """Compute the embeddings, or find them on disk."""
        if self._cache is None:
            with on_device(self.encoders, self.accelerator.device):
                self._cache = self._build_cache()

    def _build_cache(self) -> ArrayCache:
        """The embeddings of all different captions, (captions, L * D + P)."""
        with torch.no_grad():
            tokens, _ = self.encode(self._different[:1])
        self._tokens = tokens.shape[1:]
        encoders = map(module_fingerprint, self.encoders)
        return build_cache(
            self.folder / "text.npy",
            len(self._different),
            self._compute,
            fingerprint=text_fingerprint("text", *self._tokens, *encoders, *self._different),
            accelerator=self.accelerator,
            batch_size=64,
            title="encoding text",
            dtype=self.dtype,
        )

    def draw(self, rows: Tensor, draws: Tensor | None = None) -> Embeddings:
        """(N, L, D) tokens and (N, P) pooled on the device, some of no caption.

        Args:
            rows: (N,) row numbers of the data.
            draws: (N,) random numbers from 0 to below 2^62, which choose among several captions of a row, and which
                rows get none; without them the global generator chooses which.

        Raises:
            DataError: A row has several captions, and nothing chooses.
        """
        assert self._cache is not None
        places = self._places[self._starts[rows.cpu()] + self._choices(rows.cpu(), draws)]
        if self.empty:
            places = torch.where(self._dropped(len(places), draws), 0, places)
        row = self._cache[places].to(self.accelerator.device)
        # The pooled text lies behind the tokens.
        end = math.prod(self._tokens)
        tokens = row[:, :end].unflatten(1, self._tokens)
        return tokens, row[:, end:]

    @contextmanager
    def all_kept(self) -> Iterator[None]:
        """Inside a `with` block no caption is dropped."""
        before = self.empty
        self.empty = 0.0
        try:
            yield
        finally:
            self.empty = before

    def _dropped(self, count: int, draws: Tensor | None) -> Tensor:
        """(N,) bool: which rows get no caption."""
        if draws is None:
            return torch.rand(count) < self.empty
        # The lower bits choose among captions.
        return (draws.cpu() >> HALF).double() / 2**HALF < self.empty

    def _choices(self, rows: Tensor, draws: Tensor | None) -> Tensor:
        """(N,) which caption of each row."""
        counts = self._counts[rows]
        if draws is not None:
            return draws.cpu() % counts
        if (counts > 1).any():
            raise DataError("rows have several captions: give `draws`, random numbers that choose one.")
        return torch.zeros_like(counts)

    def _compute(self, places: Sequence[int]) -> Tensor:
        """Caption numbers -> (len, L * D + P).

        Raises:
            DataError: A text encoder computes in less than float32, and overflows, as T5 does in float16.
        """
        tokens, pooled = self.encode([self._different[place] for place in places])
        rows = torch.cat([tokens.flatten(1), pooled.flatten(1)], dim=1)
        narrow = {parameter.dtype for encoder in self.encoders for parameter in encoder.parameters()} - {torch.float32}
        if narrow and not rows.isfinite().all():
            raise DataError(f"a text encoder overflows in {narrow.pop()}: use --text_encoder_dtype float32.")
        return rows
