"""The families of text-to-image transformers, a row each."""

from __future__ import annotations

from .base import Family
from .flux import Flux
from .flux2 import Flux2Klein
from .lumina2 import Lumina2
from .pixart import PixArtSigma
from .qwen_image import QwenImage
from .sana import Sana
from .sd3 import SD3
from .wan import Wan
from .z_image import ZImage


ROWS: tuple[type[Family], ...] = (SD3, Flux, Flux2Klein, QwenImage, ZImage, Sana, Lumina2, Wan, PixArtSigma)
# Family by the name of its pipeline's class.
FAMILY_OF = {family.pipeline_class: family for family in ROWS}
