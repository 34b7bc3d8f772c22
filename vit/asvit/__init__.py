"""As-ViT (ICLR 2022): an architecture space of four-stage ViTs, the network, and its scores without training."""

from .genotype import Genotype, GenotypeError
from .model import AsViT
from .space import SearchSpace


__all__ = ["AsViT", "Genotype", "GenotypeError", "SearchSpace"]
