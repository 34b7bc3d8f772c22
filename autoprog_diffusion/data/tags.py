"""Captions that are lists of tags, `a cat, black, sitting`: other orders of them, each epoch one."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoprog_diffusion.growth.errors import ConfigError

from .caption_text import Caption
from .errors import DataError


if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TagSettings:
    """Shuffling of tags, the words between commas.

    Attributes:
        orders: Orders that a caption may have, the written one among them; 0 keeps that one.
        keep: Tags at the beginning that stay where they are.
        seed: Of the orders.

    Raises:
        ConfigError: A number is not allowed.
    """

    orders: int = 0
    keep: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.orders < 0 or self.orders == 1:
            raise ConfigError(
                f"--shuffle_tags {self.orders} is not allowed: it is the number of orders that a caption may have, 2 "
                "or more; 0 keeps captions as they are."
            )
        if self.keep < 0:
            raise ConfigError(f"--keep_tags {self.keep} is not allowed: use 0 or more.")


def with_tag_orders(data: Dataset, settings: TagSettings) -> Dataset:
    """The data with several orders of every caption's tags, of which one is drawn in every epoch.

    Their number is fixed, so that all of them can be encoded once.

    Args:
        data: Column `text`, of captions or lists of captions.
        settings: Of the flags.

    Raises:
        DataError: The data has no captions, or none has tags that could change their places.
    """
    if not settings.orders:
        return data
    if "text" not in data.column_names:
        raise DataError(f"--shuffle_tags {settings.orders} is not possible: these images have no captions.")
    captions: list[Caption] = data["text"][:]
    shuffled = []
    changed = False
    for caption in captions:
        options = [caption] if isinstance(caption, str) else caption
        orders = [order for text in options for order in tag_orders(text, settings)]
        changed = changed or len(orders) > len(options)
        shuffled.append(orders)
    if not changed:
        raise DataError(
            f"--shuffle_tags {settings.orders} changes nothing: no caption has two tags, the words between commas, "
            f"behind the first {settings.keep}. Remove the flag, or lower --keep_tags."
        )
    return data.remove_columns("text").add_column("text", shuffled)  # type: ignore[call-arg]


def tag_orders(caption: str, settings: TagSettings) -> list[str]:
    """Orders of a caption's tags, first the written one; only that where nothing can change its place.

    They depend on seed and caption alone, and one may come twice.

    Args:
        caption: Tags with commas between them.
        settings: How many, and which tags stay.
    """
    tags = [tag.strip() for tag in caption.split(",")]
    tags = [tag for tag in tags if tag]
    first = tags[: settings.keep]
    others = tags[settings.keep :]
    if len(others) < 2:
        return [caption]
    random = np.random.default_rng((settings.seed, zlib.crc32(caption.encode())))
    orders = [caption]
    for _ in range(settings.orders - 1):
        drawn = [others[place] for place in random.permutation(len(others))]
        orders.append(", ".join(first + drawn))
    return orders
