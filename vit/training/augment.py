"""Augmentation of whole batches on the device, at the stage's resolution, and the soft targets that go with it.

kornia does the cropping and the colours; every image draws its own. Everything random comes from PyTorch's generators,
which checkpoints hold, so a resumed run sees the same pictures. Cost on one core, 128 images of 32 pixels: 15 ms for
RandAugment, 9 ms for a resized crop, 1 ms for the rest, where a small ViT takes a second.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.augmentation import RandomCrop, RandomResizedCrop
from torch import Tensor

from .arguments import AugmentArguments
from .randaugment import RandAugment, parse_randaugment, rand_augment
from .regularisation import Strength


# Of ImageNet's pixels: what is trained here always uses these, whatever the model's own configuration says.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)


class Augment:
    """Training batches: crop, mirror, RandAugment, normalise, erase, mix.

    Args:
        args: Kinds and probabilities.
        num_classes: Width of the targets.
        smoothing: Label smoothing.
        crop: Whether to crop here; not where the loader already cropped.
    """

    def __init__(self, args: AugmentArguments, num_classes: int, smoothing: float, *, crop: bool = True) -> None:
        self._args, self._classes, self._smoothing, self._crop = args, num_classes, smoothing, crop
        self._rand = parse_randaugment(args.aa) if args.aa else None

    def __call__(self, images: Tensor, labels: Tensor, strength: Strength) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) images in [0, 1] and (N,) classes -> normalised images and (N, classes) targets."""
        images = mirrored(self._cropped(images), self._args.hflip)
        if self._rand is not None and strength.magnitude > 0:
            settings = RandAugment(strength.magnitude, self._rand.deviation, self._rand.layers)
            images = rand_augment(images, settings)
        images = erased(normalised(images), strength.reprob)
        return mixed(images, one_hot(labels, self._classes, self._smoothing), self._args)

    def _cropped(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if self._crop and self._args.crop == "resized":
            return RandomResizedCrop((height, width), scale=self._args.scale, ratio=self._args.ratio)(images)
        if self._crop and self._args.crop == "pad":
            return RandomCrop((height, width), padding=max(1, height // 8), padding_mode="reflect")(images)
        return images


def normalised(images: Tensor) -> Tensor:
    """(N, 3, H, W) images in [0, 1] -> mean 0 and deviation 1 on ImageNet."""
    return (images - images.new_tensor(MEAN).view(3, 1, 1)) / images.new_tensor(STD).view(3, 1, 1)


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
    area = height * width * (_ERASED_AREA[0] + draw[:, 0] * (_ERASED_AREA[1] - _ERASED_AREA[0]))
    low, high = (math.log(value) for value in _ERASED_RATIO)
    ratio = (low + draw[:, 1] * (high - low)).exp()
    h, w = (area * ratio).sqrt().clamp(1, height), (area / ratio).sqrt().clamp(1, width)
    inside = rectangle((height, width), (draw[:, 2] * (height - h), draw[:, 3] * (width - w)), (h, w))
    inside &= (draw[:, 4] < probability).view(-1, 1, 1)
    return torch.where(inside.to(images.device).unsqueeze(1), torch.randn_like(images), images)


def rectangle(size: tuple[int, int], corner: tuple[Tensor, Tensor], sides: tuple[Tensor, Tensor]) -> Tensor:
    """(N, H, W) masks of rectangles: top and left, height and width, (N,) each, in pixels."""
    inside = []
    for length, start, side in zip(size, corner, sides):
        first = start.round().view(-1, 1)
        place = torch.arange(length).view(1, -1)
        inside.append((place >= first) & (place < first + side.round().view(-1, 1)))
    return inside[0].unsqueeze(2) & inside[1].unsqueeze(1)


def one_hot(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """(N,) classes -> (N, classes) targets that sum to 1, `smoothing` of it spread over all classes."""
    return F.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def mixed(images: Tensor, targets: Tensor, args: AugmentArguments) -> tuple[Tensor, Tensor]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899): sample i with sample N - 1 - i, as timm's batch mode.

    One share is drawn per batch; that of cutmix is then the part of the image that was kept.
    """
    if not (args.mixup or args.cutmix) or float(torch.rand(())) >= args.mixup_prob:
        return images, targets
    cut = bool(args.cutmix) and (not args.mixup or float(torch.rand(())) < args.mixup_switch_prob)
    alpha = args.cutmix if cut else args.mixup
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = images.flip(0)
    if cut:
        height, width = images.shape[2:]
        side = math.sqrt(1 - share)
        centre = torch.rand(2)
        first = [max(0, round(float(c) * n - side * n / 2)) for c, n in zip(centre, (height, width))]
        last = [min(n, round(float(c) * n + side * n / 2)) for c, n in zip(centre, (height, width))]
        images = images.clone()
        images[:, :, first[0] : last[0], first[1] : last[1]] = other[:, :, first[0] : last[0], first[1] : last[1]]
        share = 1 - (last[0] - first[0]) * (last[1] - first[1]) / (height * width)
    else:
        images = images * share + other * (1 - share)
    return images, targets * share + targets.flip(0) * (1 - share)
