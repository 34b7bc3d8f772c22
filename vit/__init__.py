"""Progressive pretraining and fine-tuning of vision transformers, on the same growth core.

Importing this package registers the units of timm's and transformers' vision transformers; it needs torch only.
"""

from autoprog_diffusion.adapters import vit as adapter

from .autoprog_one.config import ViTGrowthConfig
from .autoprog_one.scheduler import ViTGrowth


__all__ = ["ViTGrowth", "ViTGrowthConfig", "adapter"]
