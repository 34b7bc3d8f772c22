"""Errors of patching: a script that is refused, with the line and the reason."""

from __future__ import annotations

from pathlib import Path

from autoprog_diffusion.growth.errors import GrowthError


class PatchError(GrowthError):
    """A training script cannot be read, or is not understood well enough to be changed.

    Attributes:
        path: The script.
        line: Line that decided it, from 1; None for the file as a whole.
        reason: What is the matter, and what to do about it.
    """

    def __init__(self, path: Path, line: int | None, reason: str) -> None:
        self.path = path
        self.line = line
        self.reason = reason
        place = f"{path}" if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {reason}")
