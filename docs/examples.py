"""An extension of griffe, which reads the docstrings for the site: a section `Example:` is one of examples.

griffe knows `Examples:` alone, and would take the lines of a session for quotations.
"""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Names the sections as griffe does."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
