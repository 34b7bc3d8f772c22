"""Settings of the augmentation, apart from its code: reading them imports no image library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AugmentSettings:
    """Augmentation, of the last stage; --aa_scale, --drop_path_scale and --reprob_scale say where the first begins."""

    crop: Literal["resized", "pad", "none"] = "resized"
    """Random resized crop, a crop of the image padded by an eighth of its side, or the whole image."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of a resized crop, as a fraction of the image's."""
    ratio: tuple[float, float] = (0.75, 4 / 3)
    """Aspect ratio of a resized crop."""
    hflip: float = 0.5
    """Probability of mirroring."""
    aa: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation; None for none."""
    reprob: float = 0.25
    """Probability of erasing a rectangle."""
    mixup: float = 0.8
    """Alpha of mixup, 0 for none."""
    cutmix: float = 1.0
    """Alpha of cutmix, 0 for none."""
    mixup_prob: float = 1.0
    """Probability that a batch is mixed."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix where both are on."""
    aa_scale: float = 0.5
    """Magnitude of RandAugment in the first stage, as a fraction of the last one's."""
    drop_path_scale: float = 0.0
    """Stochastic depth in the first stage, as a fraction of the last one's."""
    reprob_scale: float = 0.0
    """Probability of erasing in the first stage, as a fraction of the last one's."""
