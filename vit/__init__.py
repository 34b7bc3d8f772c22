"""Progressive pretraining and fine-tuning of vision transformers, on the same growth core.

Importing this package registers the units of timm's and transformers' vision transformers; it needs torch only.
"""

from . import adapter
from .config import ViTGrowthConfig
from .scheduler import ViTGrowth


__all__ = ["ViTGrowth", "ViTGrowthConfig", "adapter"]
