"""Labels as tables store them: one class has one label, whatever type its cells are of."""

from __future__ import annotations

from typing import Any


def clean_label(value: Any) -> Any:
    """A label without blanks around it; a whole number as such, even where a table stores it as floating point.

    None is for a row without a class: no value, blank text, not a number, or -1 as `datasets` writes it.
    """
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value == -1 or value != value:
        return None
    return value
