"""Images with captions, for text-to-image models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .caption_text import has_lists, with_captions
from .decode import file_of
from .emoji import DEFAULT_STYLE, emoji_dataset
from .errors import DataError
from .report import DataReport
from .sources import read_training_set
from .subset import draw_samples


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
    seed: int = 0,
    report: DataReport | None = None,
) -> Dataset:
    """A training set with the columns `image` and `text`; by default OpenMoji's training split.

    A row's `text` is one caption, or a list of them where the data has lists.

    Args:
        train_data_dir: As `sources.read_splits` takes it.
        dataset_name: Hub name or folder of a `datasets` data set, instead of `train_data_dir`.
        dataset_config_name: Configuration of that data set.
        image_column: Column that holds the images.
        caption_column: Column that holds the captions.
        max_train_samples: Take only so many images, a random choice.
        resolution: Side in pixels at which the default data is rendered.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        seed: Of the random choice.
        report: Gets what was found and left out.

    Raises:
        DataError: Both a folder and a name are given, nothing is there, the columns are missing, or a caption is.
    """
    data, reading = read_training_set(
        train_data_dir,
        dataset_name,
        dataset_config_name,
        cache_dir=cache_dir,
        default=lambda: emoji_dataset(DEFAULT_STYLE, size=resolution, split="train"),
        report=report,
        image_column=image_column,
        caption_column=caption_column,
    )
    data = with_captions(data, lambda row: file_of(data, row))
    data = draw_samples(data, max_train_samples, seed, reading=reading)
    if not len(data):
        raise DataError(f"the training set is empty. {reading.line()}.")
    if has_lists(data):
        reading.notes.append("rows have several captions: one is drawn in every epoch, by seed, epoch and row")
    return data
