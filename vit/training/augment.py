"""Augmentation of whole batches on the device, at the stage's resolution, and the soft targets that go with it.

kornia does the cropping and the colours; every image draws its own. Everything random comes from PyTorch's generators,
which checkpoints hold, so a resumed run sees the same pictures. Cost on one core, 128 images of 32 pixels: 15 ms for
RandAugment, 9 ms for a resized crop, 1 ms for the rest, where a small ViT takes a second.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomCrop, RandomResizedCrop
from torch import Tensor

from .augment_settings import AugmentSettings
from .randaugment import parse_randaugment, rand_augment
from .regularisation import Strength


# Of ImageNet's pixels: what is trained here always uses these, whatever the model's own configuration says.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# timm's defaults for random erasing.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = (0.3, 1 / 0.3)


class Augment:
    """Training batches: crop, mirror, RandAugment, normalise, erase, mix.

    Args:
        settings: Kinds and probabilities.
        num_classes: Width of the targets.
        smoothing: Label smoothing.
        crop: Whether to crop here; not where the loader already cropped.
    """

    def __init__(self, settings: AugmentSettings, num_classes: int, smoothing: float, *, crop: bool = True) -> None:
        self._settings = settings
        self._classes = num_classes
        self._smoothing = smoothing
        self._crop = settings.crop if crop else "none"
        self._rand = parse_randaugment(settings.aa) if settings.aa else None

    def __call__(self, images: Tensor, labels: Tensor, strength: Strength) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) images in [0, 1] and (N,) classes -> normalised images and (N, classes) targets."""
        images = self._cropped(images)
        images = mirrored(images, self._settings.hflip)
        if self._rand is not None and strength.magnitude > 0:
            images = rand_augment(images, replace(self._rand, magnitude=strength.magnitude))
        images = erased(normalised(images), strength.reprob)
        targets = one_hot(labels, self._classes, self._smoothing)
        return mixed(images, targets, self._settings)

    def _cropped(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self._crop == "resized":
            crop = RandomResizedCrop((height, width), scale=self._settings.scale, ratio=self._settings.ratio)
            return crop(images)
        if self._crop == "pad":
            return RandomCrop((height, width), padding=max(1, height // 8), padding_mode="reflect")(images)
        return images


def normalised(images: Tensor) -> Tensor:
    """(N, 3, H, W) images in [0, 1] -> mean 0 and deviation 1 on ImageNet."""
    mean = images.new_tensor(MEAN).view(3, 1, 1)
    std = images.new_tensor(STD).view(3, 1, 1)
    return (images - mean) / std


def mirrored(images: Tensor, probability: float) -> Tensor:
    """Mirror each image left to right with a probability."""
    flip = (torch.rand(len(images)) < probability).to(images.device)
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)


def erased(images: Tensor, probability: float) -> Tensor:
    """Fill a random rectangle of each image with noise, with a probability (arXiv 1708.04896; timm's `pixel` mode).

    Args:
        images: (N, 3, H, W), normalised.
        probability: Of each image; 0 draws nothing.
    """
    if not probability:
        return images
    count, _, height, width = images.shape
    draw = torch.rand(count, 5)
    least, most = _ERASED_AREA
    area = height * width * (least + draw[:, 0] * (most - least))
    low, high = (math.log(value) for value in _ERASED_RATIO)
    ratio = (low + draw[:, 1] * (high - low)).exp()
    h = (area * ratio).sqrt().clamp(1, height)
    w = (area / ratio).sqrt().clamp(1, width)
    rows = _interval(height, draw[:, 2] * (height - h), h)
    columns = _interval(width, draw[:, 3] * (width - w), w)
    chosen = draw[:, 4] < probability
    rectangles = rows.unsqueeze(2) & columns.unsqueeze(1)
    inside = rectangles & chosen.view(-1, 1, 1)
    noise = torch.randn_like(images)
    return torch.where(inside.to(images.device).unsqueeze(1), noise, images)


def _interval(length: int, start: Tensor, extent: Tensor) -> Tensor:
    """(N, length) masks of intervals that begin at `start` (N,) and are `extent` (N,) long, in pixels."""
    first = start.round().view(-1, 1)
    last = first + extent.round().view(-1, 1)
    place = torch.arange(length).view(1, -1)
    return (place >= first) & (place < last)


def one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(N,) classes -> (N, classes) targets that sum to 1, `smoothing` of it spread over all classes."""
    chosen = F.one_hot(labels, num_classes)
    return chosen * (1 - smoothing) + smoothing / num_classes


def mixed(images: Tensor, targets: Tensor, settings: AugmentSettings) -> tuple[Tensor, Tensor]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899): sample i with sample N - 1 - i, as timm's batch mode.

    One share is drawn per batch; that of cutmix is then the part of the image that was kept.
    """
    mixup = settings.mixup
    cutmix = settings.cutmix
    if not (mixup or cutmix) or float(torch.rand(())) >= settings.mixup_prob:
        return images, targets
    cut = bool(cutmix) and (not mixup or float(torch.rand(())) < settings.mixup_switch_prob)
    alpha = cutmix if cut else mixup
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if cut:
        images, share = _cut_and_pasted(images, share)
    else:
        images = images * share + images.flip(0) * (1 - share)
    return images, targets * share + targets.flip(0) * (1 - share)


def _cut_and_pasted(images: Tensor, share: float) -> tuple[Tensor, float]:
    """Images with a square of the mirrored batch in them, and the part of each image that was kept."""
    height, width = images.shape[2:]
    side = math.sqrt(1 - share)  # as a fraction of the image's
    y, x = torch.rand(2).tolist()
    top, bottom = _clipped(y * height, side * height / 2, height)
    left, right = _clipped(x * width, side * width / 2, width)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].flip(0)
    pasted = (bottom - top) * (right - left)
    return images, 1 - pasted / (height * width)


def _clipped(centre: float, half: float, length: int) -> tuple[int, int]:
    """First and last place of an interval in an image of `length` pixels."""
    first = round(centre - half)
    last = round(centre + half)
    return max(0, first), min(length, last)
