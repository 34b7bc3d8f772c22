"""Pixels: any mode and shape becomes a full square in range; crops, flips and windows are as asked for."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from autoprog_diffusion.data.images import ImageSettings, random_window, read_square, to_pixels


def test_every_mode_becomes_three_channels_in_range() -> None:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"):
        grey = Image.fromarray(np.linspace(0, 255, 48 * 32).reshape(48, 32).astype(np.uint8))
        image = Image.fromarray(np.asarray(grey, np.uint16)) if mode == "I;16" else grey.convert("RGB").convert(mode)
        pixels = to_pixels(image, 32, ImageSettings())
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == torch.float32
        assert -1 <= pixels.min() < pixels.max() <= 1


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    pixels = to_pixels(image, 8, ImageSettings())
    assert torch.equal(pixels[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(pixels[:, 4, 4], torch.ones(3))
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert torch.equal(to_pixels(palette, 8, ImageSettings()), torch.ones(3, 8, 8))


def test_any_shape_gives_a_full_square() -> None:
    for size in ((30, 90), (90, 30), (33, 32), (7, 400), (32, 32), (5, 5)):
        generator = torch.Generator().manual_seed(0)
        for source in (None, generator):
            assert to_pixels(Image.new("RGB", size), 32, ImageSettings(), source).shape == (3, 32, 32)


def test_without_a_generator_the_centre_is_cropped() -> None:
    array = np.zeros((8, 24, 3), np.uint8)
    array[:, 8:16] = 255
    assert torch.equal(to_pixels(Image.fromarray(array), 8, ImageSettings(random_flip=True)), torch.ones(3, 8, 8))


def test_crops_are_random_cover_both_ends_and_can_be_switched_off() -> None:
    image = Image.fromarray(np.tile(np.arange(12, dtype=np.uint8)[None, :, None], (8, 1, 3)))

    def lefts(settings: ImageSettings) -> set[int]:
        generator = torch.Generator().manual_seed(0)
        crops = [to_pixels(image, 8, settings, generator) for _ in range(60)]
        return {round(float((crop[0, 0, 0] + 1) * 127.5)) for crop in crops}

    assert lefts(ImageSettings()) == {0, 1, 2, 3, 4}
    assert lefts(ImageSettings(center_crop=True)) == {2}


def test_flips_mirror_half_of_the_images() -> None:
    image = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8)[None, :, None], (8, 1, 3)))
    generator, plain = torch.Generator().manual_seed(0), to_pixels(image, 8, ImageSettings())
    settings = ImageSettings(random_flip=True)
    crops = [to_pixels(image, 8, settings, generator) for _ in range(100)]
    flipped = [torch.equal(crop, plain.flip(-1)) for crop in crops]
    assert all(flip or torch.equal(crop, plain) for flip, crop in zip(flipped, crops))
    assert 30 < sum(flipped) < 70


def test_pixels_are_the_image_of_the_chosen_filter() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    seen = set()
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box"):
        pixels = to_pixels(image, 16, ImageSettings(interpolation=name))
        literal = np.asarray(image.resize((16, 16), Image.Resampling[name.upper()]), np.float32) / 127.5 - 1
        assert torch.allclose(pixels, torch.from_numpy(literal).permute(2, 0, 1), atol=1e-6)
        seen.add(pixels.numpy().tobytes())
    assert len(seen) == 5


def test_windows_have_the_areas_and_ratios_that_were_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        top, left, height, width = random_window(60, 80, scale=(0.2, 0.5), ratio=(0.5, 2.0), generator=generator)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 80 - width
        assert 0.18 < height * width / 4800 < 0.53
        assert 0.45 < width / height < 2.2


def test_transparent_images_lie_on_white_and_grey_ones_become_rgb() -> None:
    assert read_square(Image.new("RGBA", (6, 6), (255, 0, 0, 0)), 4).unique().tolist() == [255]
    assert read_square(Image.new("L", (9, 4), 7), 4).unique().tolist() == [7]
