"""Open images of a data set, and say which one cannot be decoded, and why."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, UnidentifiedImageError

from .colours import to_rgb
from .errors import DataError


if TYPE_CHECKING:
    from datasets import Dataset

CURE = "Repair or delete such files, or leave them out with --corrupt skip."


def read_image(data: Dataset, row: int) -> Image.Image:
    """One image as `colours.to_rgb` gives it.

    Args:
        data: Column `image`; that of `undecoded` is read faster.
        row: Which image.

    Raises:
        DataError: It is corrupt or missing; the message names the row and the file.
    """
    with decoding(data, row):
        return to_rgb(open_image(data, row))


@contextmanager
def decoding(data: Dataset, row: int) -> Iterator[None]:
    """Decode an image without Pillow's warnings, and turn any error into one that names the image.

    Raises:
        DataError: The message names the row and the file.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # Pillow's plugins raise whatever their parsing meets: RuntimeError, TypeError, ...
        raise DataError(
            f"image {row} of the training set cannot be decoded{file_of(data, row)}: {reason(error)}. {CURE}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back Pillow's warnings about metadata and large images: they name no file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def undecoded(data: Dataset) -> Dataset:
    """The data with images as files or bytes, for `open_image`."""
    from datasets import Image as ImageFeature

    image = data.features["image"]
    if isinstance(image, ImageFeature) and not image.decode:
        return data
    # Bytes of a parquet file, too, become images here.
    return data.cast_column("image", ImageFeature(decode=False))


def open_image(data: Dataset, row: int) -> Image.Image:
    """Open an image without decoding it: Pillow can decode a JPEG at a fraction of its size."""
    return open_value(undecoded(data)[row]["image"])


def open_value(value: Any) -> Image.Image:
    """Open an image of an `undecoded` column.

    Args:
        value: `bytes` of a file, or its `path`; None where there is no image.

    Raises:
        DataError: There is no image, or it has no pixels.
    """
    content = value and value["bytes"]
    if value and content is None and value["path"]:
        content = _read(value["path"])
    if not content:
        raise DataError("there is no image" if content is None else "the file is empty")
    image = Image.open(io.BytesIO(content))
    if 0 in image.size:
        raise DataError(f"it has {image.width} x {image.height} pixels")
    return image


def reason(error: Exception) -> str:
    """Why an image cannot be decoded, in words of ours where Pillow's say nothing."""
    if isinstance(error, UnidentifiedImageError):
        return "it is in no format that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        # Pillow refuses twice as many as it warns of.
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more than {most:,} pixels: make it smaller"
    if isinstance(error, (DataError, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}"


def file_of(data: Dataset, row: int) -> str:
    """The file of an image, in brackets and after a space; empty where the image is not a file of its own."""
    image = undecoded(data)[row]["image"] or {}
    path = image.get("path")
    return f" ({path})" if path else ""


def _read(path: str) -> bytes:
    if "://" not in path:
        return Path(path).read_bytes()
    # In an archive, or on a server: `datasets` gives such paths for data on the Hub.
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()  # type: ignore[union-attr]
