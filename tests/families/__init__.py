"""The table of model families: one row gives a family every test of `tests/contracts`."""

from __future__ import annotations

from . import images, joint, others, unets, video
from .family import Family


FAMILIES = [*unets.ROWS, *images.ROWS, *joint.ROWS, *video.ROWS, *others.ROWS]
BY_ID = {family.id: family for family in FAMILIES}

__all__ = ["BY_ID", "FAMILIES", "Family"]
