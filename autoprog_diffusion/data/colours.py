"""From any mode of Pillow to upright RGB of 8 bits."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms, features

from .depth import DEEP, to_8_bits


# Value of EXIF's orientation -> what makes the image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those after which the height is the width.
_EXCHANGES = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}
# Modes with alpha, and the mode without premultiplication that Pillow converts them from.
_TRANSPARENT = {"RGBA": "RGBA", "LA": "LA", "PA": "PA", "RGBa": "RGBA", "La": "LA"}
# Steps of 255 by which a profile may move a colour and still be sRGB under another name.
_SAME = 3


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as upright RGB of 8 bits; transparent parts are white.

    Grey of 16 and 32 bits and floating point is scaled, EXIF's orientation applied, and an RGB or CMYK image with a
    colour profile brought to sRGB. Profiles of grey images are not applied. An animation gives its first frame.

    Raises:
        DataError: The pixels do not say what is white.
    """
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _without_alpha(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    # Nothing may be applied twice.
    rgb.info = {}
    return rgb


def is_turned(image: Image.Image) -> bool:
    """Whether height and width of a file change places when its image is made upright."""
    return _TURNS.get(_orientation(image)) in _EXCHANGES


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where the metadata is damaged: the pixels are whole, and viewers show them."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # struct.error, SyntaxError and others: Pillow's parser does not expect damage
        return 1


def _without_alpha(image: Image.Image) -> Image.Image:
    """RGB, as the image lies in the file."""
    if image.mode in DEEP:
        return to_8_bits(image).convert("RGB")
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_srgb()) or image
    profile = image.info.get("icc_profile")
    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        return _to_srgb(image, profile)
    plain = image.convert(_TRANSPARENT.get(image.mode, "RGBA")).convert("RGBA")
    if profile:
        colours = _to_srgb(plain.convert("RGB"), profile)
        colours.putalpha(plain.getchannel("A"))
        plain = colours
    white = Image.new("RGBA", plain.size, "white")
    opaque = Image.alpha_composite(white, plain)
    return opaque.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image without alpha in RGB, its colours in sRGB."""
    if image.mode != "CMYK":
        grey = image.mode in ("1", "L")
        image = image.convert("RGB")
        if grey:
            return image
    transform = _transform(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    return ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; None where they are sRGB already, or the profile does not fit the mode."""
    if not features.check("littlecms2"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "RGB" and _moves_nothing(transform):
        return None
    return transform


def _moves_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = np.arange(0, 256, 51, dtype=np.uint8)
    axes = np.meshgrid(steps, steps, steps)
    grid = np.stack(axes, axis=-1)
    colours = Image.fromarray(grid.reshape(1, -1, 3))
    moved = ImageCms.applyTransform(colours, transform)
    difference = np.asarray(moved, int) - np.asarray(colours, int)
    return np.abs(difference).max() <= _SAME


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
