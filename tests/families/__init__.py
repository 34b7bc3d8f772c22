"""The table of model families: one row gives a family every test of `tests/contracts`."""

from __future__ import annotations

from . import classifiers, images, joint, others, unets, video
from .classifiers import Classifier
from .family import NEWER, Family, newer


_ROWS = [*unets.ROWS, *images.ROWS, *joint.ROWS, *video.ROWS, *others.ROWS]
DENOISERS = [row for row in _ROWS if row.id not in NEWER or newer(row.id)]
FAMILIES = [*DENOISERS, *classifiers.ROWS]
BY_ID = {family.id: family for family in FAMILIES}

__all__ = ["BY_ID", "DENOISERS", "FAMILIES", "Classifier", "Family"]
