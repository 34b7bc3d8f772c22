"""The user's own optimizer, where Accelerate has wrapped it."""

from __future__ import annotations

from typing import Any


def bare(optimizer: Any) -> Any:
    """The optimizer inside of Accelerate's wrapper, which has no public name for it; any other one as it is."""
    return getattr(optimizer, "optimizer", optimizer)
