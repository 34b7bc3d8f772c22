"""The frames of short videos: animated pictures, such as WebP, GIF and PNG files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from .colours import to_rgb
from .decode import decoding, file_of, open_image
from .errors import DataError


if TYPE_CHECKING:
    from datasets import Dataset


def read_frames(data: Dataset, row: int, count: int) -> list[Image.Image]:
    """The first frames of an animated picture as `colours.to_rgb` gives them; of any picture with a count of 1.

    Args:
        data: Column `image`; that of `undecoded` is read faster.
        row: Which picture.
        count: Number of frames.

    Raises:
        DataError: It is corrupt or missing, or has fewer frames; the message names the row and the file.
    """
    with decoding(data, row):
        image = open_image(data, row)
        found = getattr(image, "n_frames", 1)
        frames = []
        for number in range(min(count, found)):
            image.seek(number)
            frames.append(to_rgb(image.copy()))
    if found < count:
        kind = "is a still picture" if found == 1 else f"has {found} frames"
        raise DataError(
            f"image {row} of the training set{file_of(data, row)} {kind}, and --num_frames asks for {count}: leave it "
            "out, give a longer one (an animated .webp, .gif or .png), or ask for fewer frames; 1 trains on pictures."
        )
    return frames
