"""One file per model family. Importing this package registers them all; no host library is imported."""

from . import transformer, unet
from .stage_embedding import StageEmbedding, timestep_embedders


__all__ = ["StageEmbedding", "timestep_embedders", "transformer", "unet"]
