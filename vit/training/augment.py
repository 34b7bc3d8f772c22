"""Augmentation of whole batches on the device, at the stage's resolution, and the soft targets that go with it.

kornia does the cropping and the colours; every image draws its own. Everything random comes from PyTorch's generators,
which checkpoints hold, so a resumed run sees the same pictures. Cost on one core, 128 images of 32 pixels: 15 ms for
RandAugment, 9 ms for a resized crop, 1 ms for the rest, where a small ViT takes a second.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomCrop, RandomResizedCrop
from kornia.enhance import normalize
from torch import Tensor

from autoprog_diffusion.data.images import between

from .augment_settings import AugmentSettings
from .randaugment import parse_randaugment, rand_augment
from .regularisation import Strength


# Of ImageNet's pixels: what is trained here always uses these, whatever the model's own configuration says.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# timm's defaults for random erasing.
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))


@dataclass(frozen=True)
class Augment:
    """Training batches: crop, mirror, RandAugment, normalise, erase, mix.

    Attributes:
        settings: Kinds and probabilities.
        num_classes: Width of the targets.
        smoothing: Label smoothing.
        crop: Whether to crop here; not where the loader already cropped.
    """

    settings: AugmentSettings
    num_classes: int
    smoothing: float
    _: KW_ONLY
    crop: bool = True

    def __call__(self, images: Tensor, labels: Tensor, strength: Strength) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) images in [0, 1] and (N,) classes -> normalised images and (N, classes) targets."""
        settings = self.settings
        targets = one_hot(labels, self.num_classes, self.smoothing)
        if self.crop:
            images = cropped(images, settings)
        images = mirrored(images, settings.hflip)
        if settings.aa and strength.magnitude > 0:
            randaugment = parse_randaugment(settings.aa)
            images = rand_augment(images, replace(randaugment, magnitude=strength.magnitude))
        images = normalised(images)
        images = erased(images, strength.reprob)
        return mixed(images, targets, settings)


def cropped(images: Tensor, settings: AugmentSettings) -> Tensor:
    """Crop each image in a place of its own, as `settings.crop` says; the size stays."""
    height, width = images.shape[2:]
    size = (height, width)
    if settings.crop == "resized":
        crop = RandomResizedCrop(size, scale=settings.scale, ratio=settings.ratio)
        return crop(images)
    if settings.crop == "pad":
        crop = RandomCrop(size, padding=max(1, height // 8), padding_mode="reflect")
        return crop(images)
    return images


def normalised(images: Tensor) -> Tensor:
    """(N, 3, H, W) images in [0, 1] -> mean 0 and deviation 1 on ImageNet."""
    return normalize(images, images.new_tensor(MEAN), images.new_tensor(STD))


def mirrored(images: Tensor, probability: float) -> Tensor:
    """Mirror each image left to right with a probability."""
    flip = torch.rand(len(images), 1, 1, 1) < probability
    return torch.where(flip.to(images.device), images.flip(3), images)


def erased(images: Tensor, probability: float) -> Tensor:
    """Fill a random rectangle of each image with noise, with a probability (arXiv 1708.04896; timm's `pixel` mode).

    Args:
        images: (N, 3, H, W), normalised.
        probability: Of each image; 0 draws nothing.
    """
    if not probability:
        return images
    height, width = images.shape[2:]
    size, shape, y, x, chance = torch.rand(len(images), 5).unbind(1)
    area = height * width * between(*_ERASED_AREA, size)
    log_ratio = between(*_ERASED_LOG_RATIO, shape)
    ratio = log_ratio.exp()
    rows = _interval(height, area * ratio, y)
    columns = _interval(width, area / ratio, x)
    chosen = (chance < probability).view(-1, 1, 1)
    inside = rows.unsqueeze(2) & columns.unsqueeze(1) & chosen
    inside = inside.unsqueeze(1).to(images.device)
    noise = torch.randn_like(images)
    return torch.where(inside, noise, images)


def _interval(length: int, square: Tensor, place: Tensor) -> Tensor:
    """(N, length) masks of intervals, in pixels.

    Args:
        length: Of the side that an interval lies on.
        square: (N,) squares of the intervals' lengths.
        place: (N,) where an interval lies: 0 at the beginning of the side, 1 at its end.
    """
    extent = square.sqrt().clamp(1, length).unsqueeze(1)
    first = place.unsqueeze(1) * (length - extent)
    first = first.round()
    last = first + extent.round()
    pixels = torch.arange(length)
    return (pixels >= first) & (pixels < last)


def one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(N,) classes -> (N, classes) targets that sum to 1, `smoothing` of it spread over all classes."""
    chosen = F.one_hot(labels, num_classes)
    spread = smoothing / num_classes
    return chosen * (1 - smoothing) + spread


def mixed(images: Tensor, targets: Tensor, settings: AugmentSettings) -> tuple[Tensor, Tensor]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899): sample i with sample N - 1 - i, as timm's batch mode.

    One share is drawn per batch; that of cutmix is then the part of the image that was kept.
    """
    mixup = settings.mixup
    cutmix = settings.cutmix
    if not (mixup or cutmix):
        return images, targets
    if not _happens(settings.mixup_prob):
        return images, targets
    # Chance decides only where both are on.
    cut = bool(cutmix)
    if mixup and cutmix:
        cut = _happens(settings.mixup_switch_prob)
    alpha = cutmix if cut else mixup
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    if cut:
        images, share = _cut_and_pasted(images, share)
    else:
        images = _blended(images, share)
    return images, _blended(targets, share)


def _happens(probability: float) -> bool:
    """Draw once for the whole batch."""
    return float(torch.rand(())) < probability


def _blended(values: Tensor, share: float) -> Tensor:
    """A share of every sample and the rest of its partner."""
    return values * share + values.flip(0) * (1 - share)


def _cut_and_pasted(images: Tensor, share: float) -> tuple[Tensor, float]:
    """Images with a square of their partners in them, and the part of each image that was kept."""
    height, width = images.shape[2:]
    # Half of the square's side, as a fraction of the image's.
    half = math.sqrt(1 - share) / 2
    y, x = torch.rand(2).tolist()
    rows = _clipped(y, half, height)
    columns = _clipped(x, half, width)
    images = images.clone()
    square = images[:, :, rows, columns]
    square.copy_(square.flip(0))
    pasted = square[0, 0].numel() / (height * width)
    return images, 1 - pasted


def _clipped(centre: float, half: float, length: int) -> slice:
    """Pixels within `half` of `centre`, both as fractions of an image's side of `length` pixels."""
    first = round(centre * length - half * length)
    last = round(centre * length + half * length)
    first = max(0, first)
    return slice(first, min(length, last))
