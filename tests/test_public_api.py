"""The public names are those of `tests/public_api.txt`: `python tests/test_public_api.py` writes it again.

A name or a parameter that is gone breaks somebody's script: it needs a line under Removed or Changed in the changelog.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any


FILE = Path(__file__).with_name("public_api.txt")
# Modules whose `__all__` is public, and what `import autoprog_diffusion` alone does not reach.
MODULES = (
    "autoprog_diffusion",
    "autoprog_diffusion.adapters",
    "autoprog_diffusion.growth",
    "autoprog_diffusion.reporting",
    "autoprog_diffusion.search",
    "autoprog_diffusion.vit",
    "autoprog_diffusion.vit.asvit",
)


def public_api() -> list[str]:
    """A line for every public name, with the parameters of what is called."""
    lines: dict[str, None] = {}
    for module in MODULES:
        found = importlib.import_module(module)
        for name in sorted(found.__all__):
            value = getattr(found, name)
            if inspect.ismodule(value) or name == "__version__":
                lines[f"{module}.{name}"] = None
                continue
            lines[f"{module}.{name}{parameters(value)}"] = None
            if inspect.isclass(value) and value.__module__.startswith("autoprog_diffusion"):
                lines.update(dict.fromkeys(f"{module}.{name}.{member}" for member in members(value)))
    return list(lines)


def members(kind: type) -> Iterator[str]:
    """Public methods and properties of a class, its own and those of our classes that it inherits."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("autoprog_diffusion")]
    names = {name for base in ours for name in vars(base) if not name.startswith("_")}
    for name in sorted(names):
        value: Any = inspect.getattr_static(kind, name)
        value = getattr(value, "__func__", value)
        if inspect.isfunction(value):
            yield f"{name}{parameters(value)}"
        elif isinstance(value, property):
            yield name


def parameters(value: Any) -> str:
    """Names of parameters, those with a default followed by `=`; types and defaults may become others."""
    if not callable(value) or (inspect.isclass(value) and issubclass(value, BaseException)):
        return ""
    try:
        found = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return ""
    words = []
    for parameter in found:
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in "".join(words):
            words.append("*")
        words.append(f"{star}{parameter.name}{'' if parameter.default is parameter.empty else '='}")
    return f"({', '.join(words)})"


def test_the_public_names_are_those_of_the_list() -> None:
    listed = FILE.read_text(encoding="utf-8").splitlines()
    found = public_api()
    assert sorted(set(listed) - set(found)) == [], "gone or changed: name it in the changelog, write the list again"
    assert sorted(set(found) - set(listed)) == [], "new: write the list again"


if __name__ == "__main__":
    FILE.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
