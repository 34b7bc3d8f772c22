"""One file per kind of model. Importing this package registers them all; no host library is imported."""

from . import transformer, unet, vit
from .saved_embedding import use_stage_embedding
from .stage_embedding import StageEmbedding
from .timestep import timestep_embedders


__all__ = ["StageEmbedding", "timestep_embedders", "transformer", "unet", "use_stage_embedding", "vit"]
