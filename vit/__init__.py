"""Progressive pretraining and fine-tuning of vision transformers, on the same growth core.

Importing this package registers the units of timm's and transformers' vision transformers; it needs torch only.
"""

from .depth.config import ViTGrowthConfig
from .depth.scheduler import ViTGrowth
from .unfreezing import adapter


__all__ = ["ViTGrowth", "ViTGrowthConfig", "adapter"]
