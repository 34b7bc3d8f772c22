"""Grey images of more than 8 bits: integers of 16 and 32 bits, and floating point, brought to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from .errors import DataError


# Pillow's modes that `convert` would clip at 255 instead of scaling.
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
# Tags of a TIFF.
_BITS = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
# Formats of which Pillow gives 16 bits as mode I.
_SIXTEEN_BITS = ("PNG", "PPM")


def to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of a mode in `DEEP` in mode L: black stays black, and the white of its depth becomes 255.

    Raises:
        DataError: Its values do not say what is white: below 0, not finite, or floating point above 1.
    """
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "F":
        white = 1.0
        _check_range(values)
    else:
        values = _integers(image, values, tags)
        white = _white(image, values, tags)
    grey = np.rint(values * (255.0 / white)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey  # WhiteIsZero, which Pillow leaves as it is at this depth
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey)


def _check_range(values: np.ndarray) -> None:
    low = float(values.min())
    high = float(values.max())
    # A comparison with NaN is false.
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"its pixels are floating point from {low:g} to {high:g}, and only 0 to 1 has a known white: scale them "
            "to [0, 1], or save 8 or 16 bits"
        )


def _integers(image: Image.Image, values: np.ndarray, tags: Any) -> np.ndarray:
    """The values as they are in the file, (H, W), none of them below 0."""
    bits = tags.get(_BITS)
    # Without the tag integers have no sign.
    sample_format = tags.get(_SAMPLE_FORMAT, (1,))
    if image.mode == "I" and bits == (32,) and sample_format == (1,):
        return values.view(np.uint32)  # Pillow has no mode for them
    if values.min() < 0:
        raise DataError(f"its pixels are integers from {values.min()}: negative ones have no grey, save 0 as black")
    return values


def _white(image: Image.Image, values: np.ndarray, tags: Any) -> float:
    """The value that is white."""
    if tags.get(_BITS) == (12,):
        return 2**12 - 1
    if image.mode != "I" or image.format in _SIXTEEN_BITS:
        return 2**16 - 1
    # Programs write images of 8 and 16 bits into 32 bits: the narrowest depth that holds the values is meant.
    high = int(values.max())
    bits = 8
    for bits in (8, 16, 31, 32):
        if high < 2**bits:
            break
    white = 2**bits - 1
    if high < white / 255:
        raise DataError(
            f"its pixels are 32-bit integers up to {high}, which would be black: scale them to 8 or 16 bits"
        )
    return white
