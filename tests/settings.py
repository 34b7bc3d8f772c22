"""The table of model families, where the tests look for it; the rows are in `families/`."""

from __future__ import annotations


if __package__:
    from .families import BY_ID, DENOISERS, FAMILIES, Classifier, Family
else:  # a script of tests/distributed, which has this folder on its path
    from families import BY_ID, DENOISERS, FAMILIES, Classifier, Family


__all__ = ["BY_ID", "DENOISERS", "FAMILIES", "Classifier", "Family"]
