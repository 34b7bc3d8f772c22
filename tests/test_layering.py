"""Imports go one way, the package is light, documented, short and plain ASCII."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autoprog_diffusion
from autoprog_diffusion import growth


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "autoprog_diffusion"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "vit").rglob("*.py")])
HEAVY = ("diffusers", "accelerate", "transformers", "timm", "datasets", "matplotlib")
INNER = ("growth", "search", "adapters", "data", "training", "tasks", "vit")
# Who may import whom inside the package; the growth core knows nothing but torch.
ALLOWED = {
    "growth": {"growth"},
    "search": {"growth", "search"},
    "adapters": {"growth", "search", "adapters"},
    "data": {"growth", "data", "training"},
    "training": {"growth", "search", "adapters", "data", "training"},
    "tasks": {"growth", "search", "adapters", "data", "training", "tasks"},
    "vit": {"growth", "search", "adapters", "data", "training", "vit"},
}

sources = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def module_name(path: Path) -> str:
    """Dotted name of a source file as it is installed: `vit/` lies inside the package."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "vit":
        parts.insert(0, "autoprog_diffusion")
    return ".".join(parts)


def imported(text: str, module: str) -> set[str]:
    """Absolute names of all that a module imports, anywhere in it, also inside functions."""
    names: set[str] = set()
    package = module.split(".")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            parent = ".".join(part for part in (base, node.module) if part)
            names.update(f"{parent}.{alias.name}" for alias in node.names)
    return names


def part_of(name: str) -> str | None:
    """The part of the package that a dotted name lies in."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "autoprog_diffusion" and len(pieces) > 1 and pieces[1] in INNER else None


def test_imported_resolves_every_form() -> None:
    text = "import torch.nn\nfrom .backends import accelerate\nfrom .units import front\nfrom ..adapters import unet\n"
    text += "def f():\n    import x"
    assert imported(text, "autoprog_diffusion.growth.scheduler") == {
        "torch.nn",
        "autoprog_diffusion.growth.backends.accelerate",
        "autoprog_diffusion.growth.units.front",
        "autoprog_diffusion.adapters.unet",
        "x",
    }
    init = imported("from .plan import Stage", "autoprog_diffusion.growth.__init__")
    assert init == {"autoprog_diffusion.growth.plan.Stage"}


@sources
def test_imports_go_one_way(path: Path) -> None:
    module = module_name(path)
    names = imported(path.read_text(encoding="utf-8"), module)
    assert not [name for name in names if name.split(".")[0] in ("recipes", "tests", "vit")]
    part = part_of(module)
    if part is not None:
        inner = {part_of(name) for name in names} - {None}
        assert inner <= ALLOWED[part]
    if part == "growth":
        outside = {name.split(".")[0] for name in names} - {"torch", "autoprog_diffusion"}
        assert outside <= sys.stdlib_module_names
        assert all(part_of(name) == "growth" for name in names if name.startswith("autoprog_diffusion"))


@sources
def test_a_file_is_short_and_ascii(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert len(text.splitlines()) <= 300


def test_the_import_is_light() -> None:
    code = f"import sys, autoprog_diffusion; print(sorted(set({HEAVY}) & set(sys.modules)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] True"


@pytest.mark.parametrize("module", [autoprog_diffusion, growth], ids=lambda module: module.__name__)
def test_public_names_exist_and_are_documented(module: object) -> None:
    public = {name: getattr(module, name) for name in module.__all__}
    undocumented = [
        name
        for name, value in public.items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not (value.__doc__ or "").strip()
    ]
    assert not undocumented
    # A dataclass without a docstring gets its signature as one.
    assert not [name for name, value in public.items() if re.match(rf"{name}\(", getattr(value, "__doc__", "") or "")]


def test_recipes_are_not_importable() -> None:
    sys.modules.pop("recipes", None)
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "recipes" / "__init__.py")
    with pytest.raises(ModuleNotFoundError, match=r"scripts.*accelerate launch recipes/.*autoprog_diffusion.training"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
