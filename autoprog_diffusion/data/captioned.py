"""Images with captions, for text-to-image models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .emoji import DEFAULT_STYLE, emoji_dataset
from .images import DataError, file_of
from .sources import read_training_set


if TYPE_CHECKING:
    from datasets import Dataset


def load_captioned_images(
    *,
    train_data_dir: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    image_column: str = "image",
    caption_column: str = "text",
    max_train_samples: int | None = None,
    resolution: int,
    cache_dir: str | None = None,
) -> Dataset:
    """A training set with the columns `image` and `text`; by default OpenMoji's training split.

    Args:
        train_data_dir: Folder of images with a metadata file, of parquet files, or one that `save_to_disk` wrote.
        dataset_name: Hub name or folder of a `datasets` data set, instead of `train_data_dir`.
        dataset_config_name: Configuration of that data set.
        image_column: Column that holds the images.
        caption_column: Column that holds the captions.
        max_train_samples: Take only the first so many images.
        resolution: Side in pixels at which the default data is rendered.
        cache_dir: Where `datasets` keeps what it downloads and converts.

    Raises:
        DataError: Both a folder and a name are given, nothing is there, the columns are missing, or a caption is.
    """
    data = read_training_set(
        train_data_dir,
        dataset_name,
        dataset_config_name,
        cache_dir=cache_dir,
        default=lambda: emoji_dataset(DEFAULT_STYLE, size=resolution, split="train"),
        image_column=image_column,
        caption_column=caption_column,
    )
    if max_train_samples is not None:
        data = data.select(range(min(max_train_samples, len(data))))
    if not len(data):
        raise DataError("the training set is empty.")
    for row, text in enumerate(data["text"]):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"row {row} of the training set has no caption{file_of(data, row)}: got {text!r}.")
    return data
