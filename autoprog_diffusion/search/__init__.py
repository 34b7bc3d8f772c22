"""Zero-shot choice of the next stage. Knows gradients and units, not models. Importing it registers the search."""

from autoprog_diffusion.growth.search_session import register_search

from .zero_shot import ZeroShotSearch


register_search("zero_shot", ZeroShotSearch)

__all__ = ["ZeroShotSearch"]
