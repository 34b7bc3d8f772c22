"""Images of a validation set that are trained on as well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .duplicates import MOST_IMAGES, near_duplicates, thumbnails


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset


def count_across(held_out: Dataset, trained: Dataset, *, folder: Path, accelerator: Accelerator) -> str | None:
    """A sentence on images of a validation set that are trained on as well, or None.

    Args:
        held_out: Column `image`.
        trained: The same.
        folder: Where thumbnails of the images are kept.
        accelerator: Of the run.
    """
    if len(trained) > MOST_IMAGES:
        return f"{len(trained):,} images are too many to look for those of the validation set among them"
    some = thumbnails(held_out, folder / "held_out", accelerator)
    found = int(near_duplicates(some, thumbnails(trained, folder, accelerator)).sum())
    if not found:
        return None
    return (
        f"{found} of {len(held_out)} validation images are near-duplicates of images that are trained on: the loss on "
        "them says nothing of new images"
    )
