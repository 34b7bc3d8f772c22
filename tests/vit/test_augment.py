"""Augmentation: per sample, as Pillow and timm define it, and a function of PyTorch's random state alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from autoprog_diffusion.vit.training import randaugment
from autoprog_diffusion.vit.training.augment import Augment, erased, mirrored, mixed, normalised, one_hot
from autoprog_diffusion.vit.training.augment_settings import AugmentSettings
from autoprog_diffusion.vit.training.randaugment import RandAugment, rand_augment
from autoprog_diffusion.vit.training.regularisation import Strength


PLAIN = AugmentSettings(crop="none", hflip=0.0, aa=None, reprob=0.0, mixup=0.0, cutmix=0.0)
OPERATIONS = randaugment._OPERATIONS


def some_images(count: int = 6, size: int = 16) -> Tensor:
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 4, 4), size=(size, size), mode="bilinear")
    return (smooth * 255).round() / 255


def by_pillow(name: str, image: Image.Image, strength: float) -> Image.Image:
    level, factor = abs(strength), max(0.1, 1 + 0.9 * strength)
    steps = {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "invert": lambda: ImageOps.invert(image),
        "posterize": lambda: ImageOps.posterize(image, max(1, 4 - int(4 * level))),
        "solarize": lambda: ImageOps.solarize(image, 256 - min(256, int(256 * level))),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
    }
    return steps[name]()


COLOURS_ARE_THOSE = [
    "auto_contrast",
    "invert",
    "posterize",
    "solarize",
    "color",
    "contrast",
    "brightness",
    "sharpness",
]


def test_colours_are_those_of_pillow() -> None:
    for name in COLOURS_ARE_THOSE:
        images, strength = some_images(), torch.tensor([-0.9, -0.5, -0.2, 0.3, 0.6, 0.9])
        found = OPERATIONS[name](images, strength).clamp(0, 1)
        for image, amount, result in zip(images, strength.tolist(), found):
            picture = Image.fromarray((255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy())
            wanted = torch.from_numpy(np.array(by_pillow(name, picture, amount))).permute(2, 0, 1) / 255
            # Pillow rounds on the way; a threshold may fall on the other side for a few pixels.
            close = ((result - wanted).abs() < 2.5 / 255).float().mean()
            assert close > 0.97, (amount, float((result - wanted).abs().max()))


def test_an_image_does_not_depend_on_its_batch() -> None:
    for name in sorted(OPERATIONS):
        images, strength = some_images(), torch.linspace(-1, 1, 6)
        whole = OPERATIONS[name](images, strength)
        alone = torch.cat([OPERATIONS[name](images[i : i + 1], strength[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(whole, alone, atol=1e-5, rtol=0)
        assert whole.shape == images.shape


def test_a_translation_moves_by_its_share_of_the_side() -> None:
    images = torch.zeros(1, 3, 20, 20)
    images[..., 10, 10] = 1
    moved = OPERATIONS["translate_x"](images, torch.tensor([1 / 3]))  # 0.45 / 3 of 20 pixels
    assert torch.nonzero(moved[0, 0] > 0.9).tolist() == [[10, 13]]
    torch.testing.assert_close(moved[0, :, :, :3], torch.full((3, 20, 3), 0.5))


def test_every_image_draws_its_own_operations() -> None:
    images = some_images(1).expand(64, -1, -1, -1)
    result = rand_augment(images, RandAugment(9, 0.5, 2))
    unchanged = sum(torch.equal(a, b) for a, b in zip(images, result))
    assert 6 < unchanged < 28  # a quarter draws nothing twice, plus operations that change nothing here
    assert len({tuple(image.flatten().tolist()) for image in result}) > 30


def test_normalised_images_are_imagenets() -> None:
    images = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(normalised(images), torch.zeros(2, 3, 4, 4))


def test_mirroring_follows_its_probability() -> None:
    images = some_images(400, 4)
    share = np.mean([not torch.equal(a, b) for a, b in zip(images, mirrored(images, 0.25))])
    assert 0.17 < share < 0.33
    assert torch.equal(mirrored(images, 1.0), images.flip(3))
    assert torch.equal(mirrored(images, 0.0), images)


def test_erasing_replaces_one_rectangle_by_noise() -> None:
    images = torch.full((400, 3, 16, 16), 7.0)
    result = erased(images, 0.5)
    changed = (result != 7).all(1)
    hit = changed.flatten(1).any(1)
    assert 0.4 < hit.float().mean() < 0.6
    areas = changed[hit].flatten(1).float().mean(1)
    assert areas.min() > 0.005
    assert areas.max() < 0.4
    for mask in changed[hit][:20]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows.unsqueeze(1) & columns.unsqueeze(0))
    assert torch.equal(erased(images, 0.0), images)


def test_targets_are_smoothed() -> None:
    targets = one_hot(torch.tensor([1, 0]), 4, 0.1)
    torch.testing.assert_close(targets, torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.925, 0.025, 0.025, 0.025]]))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_target_says_what_the_image_shows(kind: str) -> None:
    # Sample i is the grey i / 3, so an image's mean tells how much of which two samples it shows.
    args = dataclasses.replace(PLAIN, **{kind: 1.0})
    images = (torch.arange(4.0) / 3).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    for seed in range(20):
        torch.manual_seed(seed)
        result, targets = mixed(images, one_hot(torch.arange(4), 4, 0.0), args)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(result.mean((1, 2, 3)), targets @ torch.arange(4.0) / 3)
        shown = [set(torch.nonzero(row).flatten().tolist()) for row in targets]
        assert all(pair <= {i, 3 - i} for i, pair in enumerate(shown))
        if kind == "cutmix":
            assert set(result.unique().tolist()) <= set((torch.arange(4.0) / 3).tolist())


def test_switching_and_skipping_follow_their_probabilities() -> None:
    images, targets = some_images(2, 8), one_hot(torch.tensor([0, 1]), 2, 0.0)
    args = dataclasses.replace(PLAIN, mixup=0.8, cutmix=1.0, mixup_prob=0.5, mixup_switch_prob=0.25)
    kept = cut = 0
    for _ in range(400):
        result, _ = mixed(images, targets, args)
        values = torch.stack([images, images.flip(0)])
        from_one = (result == values).any(0).all()
        kept += torch.equal(result, images)
        cut += bool(from_one) and not torch.equal(result, images)
    assert 160 < kept < 245
    assert 28 < cut < 75


@pytest.mark.parametrize("crop", ["resized", "pad", "none"])
def test_a_batch_is_a_function_of_the_random_state(crop: str) -> None:
    args = dataclasses.replace(AugmentSettings(), crop=crop)
    augment, images, labels = Augment(args, 3, 0.1), some_images(8), torch.arange(8) % 3
    strength = Strength(magnitude=9.0, drop_path=0.0, reprob=0.5)
    state = torch.get_rng_state()
    first = augment(images, labels, strength)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    again = Augment(args, 3, 0.1)(images, labels, strength)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(augment(images, labels, strength)[0], first[0])
    assert first[0].shape == images.shape
    assert first[0].isfinite().all()


def test_nothing_is_done_where_nothing_is_asked_for() -> None:
    images, labels = some_images(), torch.arange(6) % 2
    pixels, targets = Augment(PLAIN, 2, 0.0)(images, labels, Strength(9.0, 0.0, 0.0))
    assert torch.equal(pixels, normalised(images))
    assert torch.equal(targets, one_hot(labels, 2, 0.0))
