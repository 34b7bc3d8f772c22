"""Imports go one way, and the package is light and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import autoprog_diffusion
from autoprog_diffusion import growth


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "autoprog_diffusion"
RECIPES = ROOT / "recipes"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "vit").rglob("*.py"), *RECIPES.glob("*.py")])
HEAVY = ("diffusers", "accelerate", "transformers", "timm", "datasets", "matplotlib")

CORE = (
    "bare", "choices", "values", "config_checks", "memory",
    "config", "plan", "units", "adapter", "errors", "state", "resize", "frozen_front", "lr_rewarmup", "flops",
    "protocol", "presets",
)  # fmt: skip
SHARED_BY_VIT = ("models", "ema", "resolution", "retokenize", "pretrained", "drop_path")
# Of vit/asvit and of its name in vit/, which shares it: the command line and the training it starts.
ASVIT_COMMANDS = ("commands", "training", "arguments")

# Layer of a module, by the longest of these names that its own begins with.
LAYERS = {
    **{f"growth.{name}": "growth core" for name in CORE},
    "growth.backends": "growth backends",
    "growth": "growth",
    "files": "files",
    "stage_summary": "files",
    "command_line": "files",
    "recipes": "recipes",
    "search": "search",
    "adapters": "adapters",
    "data": "data",
    "evaluation": "evaluation",
    "training": "training",
    "tasks": "tasks",
    "tasks.arguments": "task recipes",
    "tasks.text_to_image_recipe": "task recipes",
    "tasks.any_pipeline_recipe": "task recipes",
    "patching": "patching",
    "planner": "planner",
    "reporting": "reporting",
    "commands": "commands",
    **{f"vit.{name}": "vit" for name in SHARED_BY_VIT},
    "vit.autoprog_one": "vit methods",
    "vit.asvit": "vit methods",
    "vit": "vit methods",  # the names that the folder exports
    "vit.training": "vit training",
    **{f"vit.asvit.{name}": "vit scripts" for name in ASVIT_COMMANDS},
    "vit.pretrain": "vit scripts",
    "vit.finetune": "vit scripts",
}
GROWTH = {"growth core", "growth backends", "growth"}
BELOW_VIT = GROWTH | {"files", "search", "adapters", "data", "evaluation", "training"}
# Who may import whom; a layer may always import itself.
ALLOWED = {
    "growth core": set(),
    "growth backends": {"growth core"},
    "growth": {"growth core", "growth backends"},
    "files": {"growth core"},
    "search": GROWTH,
    "adapters": GROWTH | {"search"},
    "data": GROWTH | {"files"},
    "evaluation": GROWTH | {"files", "data"},
    "training": GROWTH | {"files", "search", "adapters", "data", "evaluation"},
    "tasks": GROWTH | {"files", "search", "adapters", "data", "evaluation", "training"},
    "task recipes": GROWTH | {"files", "search", "adapters", "data", "evaluation", "training", "tasks"},
    "planner": GROWTH | {"files", "search", "adapters", "data", "training", "tasks", "task recipes"},
    "patching": {"growth core"},  # it reads scripts, and runs none
    "reporting": {"growth core", "files"},  # it reads the folders of runs
    "recipes": GROWTH | {"files", "adapters", "data", "evaluation", "training", "tasks", "task recipes"},
    "commands": GROWTH
    | {"files", "search", "adapters", "data", "training", "tasks", "task recipes", "patching", "planner", "reporting"},
    "vit": BELOW_VIT,
    "vit methods": BELOW_VIT | {"vit"},
    "vit training": BELOW_VIT | {"vit", "vit methods"},
    "vit scripts": BELOW_VIT | {"vit", "vit methods", "vit training"},
}
# Modules that hold command lines; data, tasks and methods take plain parameters instead.
COMMAND_LINES = (
    "training.arguments",
    "training.recipe_arguments",
    "tasks.arguments",
    "vit.training.arguments",
    "vit.asvit.arguments",
)
PLAIN_LAYERS = {*GROWTH, "files", "search", "adapters", "data", "evaluation", "tasks", "vit", "vit methods"}
PLAIN_FILES = tuple(
    f"vit.training.{name}"
    for name in ("augment", "augment_settings", "randaugment", "regularisation", "schedule", "data")
)

# Modules that break a rule for now, with what they import against it. An entry that is not needed fails its test.
EXCEPTIONS: dict[str, set[str]] = {
    "vit/training/schedule.py": {"vit.training.arguments.TrainArguments"},
}


def module_name(path: Path) -> str:
    """Dotted name of a source file as it is installed: `recipes/` and `vit/` lie inside the package."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("recipes", "vit"):
        parts.insert(0, "autoprog_diffusion")
    return ".".join(parts)


def imported(text: str, module: str) -> set[str]:
    """Absolute names of all that a module imports, anywhere in it, also by `importlib`; "?" is an unknown name."""
    names: set[str] = set()
    package = module.split(".")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            parent = ".".join(part for part in (base, node.module) if part)
            names.update(f"{parent}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            names.add(first.value if isinstance(first, ast.Constant) else "?")
    return names


@cache
def imports_of(path: Path) -> set[str]:
    """What `imported` finds in a source file."""
    return imported(path.read_text(encoding="utf-8"), module_name(path))


def called(node: ast.Call) -> str:
    """Last part of the name of what is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def inside(name: str) -> str | None:
    """Name below `autoprog_diffusion`, or None for a module of another package."""
    package, _, rest = name.partition(".")
    return rest if package == "autoprog_diffusion" else None


def layer_of(name: str) -> str | None:
    """Layer of a module by its name below `autoprog_diffusion`; None for the package itself."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((LAYERS[prefix] for prefix in prefixes if prefix in LAYERS), None)


def layer_of_file(path: Path) -> str | None:
    """Layer of a source file: `vit/asvit.py` is a script, though the folder `vit/asvit` has the same name."""
    if path == ROOT / "vit" / "asvit.py":
        return "vit scripts"
    return layer_of(module_name(path).removeprefix("autoprog_diffusion."))


def violations(path: Path) -> set[str]:
    """Names that a source file imports although its layer may not."""
    layer = layer_of_file(path)
    if layer is None:
        return set()
    allowed = ALLOWED[layer] | {layer}
    plain = layer in PLAIN_LAYERS or inside(module_name(path)) in PLAIN_FILES
    wrong = set()
    for name in imports_of(path):
        own = inside(name)
        if own is None:
            continue
        if layer_of(own) is not None and layer_of(own) not in allowed:
            wrong.add(own)
        if plain and own.rpartition(".")[0] in COMMAND_LINES:
            wrong.add(own)
    return wrong


def test_imported_resolves_every_form() -> None:
    text = "import torch.nn\nfrom .backends import accelerate\nfrom .units import front\nfrom ..adapters import unet\n"
    text += (
        "def f(name):\n    import x\n    importlib.import_module('y.z')\n    __import__('w')\n    import_module(name)"
    )
    assert imported(text, "autoprog_diffusion.growth.scheduler") == {
        "torch.nn",
        "autoprog_diffusion.growth.backends.accelerate",
        "autoprog_diffusion.growth.units.front",
        "autoprog_diffusion.adapters.unet",
        "x",
        "y.z",
        "w",
        "?",
    }
    init = imported("from .plan import Stage", "autoprog_diffusion.growth.__init__")
    assert init == {"autoprog_diffusion.growth.plan.Stage"}


def test_the_layer_is_that_of_the_longest_name() -> None:
    assert layer_of("growth.plan.Stage") == "growth core"
    assert layer_of("growth.backends.ddp") == "growth backends"
    assert layer_of("growth.scheduler") == "growth"
    assert layer_of("vit.asvit.Genotype") == "vit methods"
    assert layer_of("vit.asvit.commands") == "vit scripts"
    assert layer_of_file(ROOT / "vit" / "asvit.py") == "vit scripts"
    assert layer_of_file(RECIPES / "finetune_sd.py") == "recipes"


def test_every_layer_holds_a_module() -> None:
    assert {layer_of_file(path) for path in SOURCES} - {None} == set(ALLOWED)
    assert not [name for name in CORE if not (PACKAGE / "growth" / f"{name}.py").is_file()]


def test_imports_go_one_way() -> None:
    wrong = {str(path.relative_to(ROOT)): violations(path) for path in SOURCES}
    assert {name: names for name, names in wrong.items() if names} == EXCEPTIONS


def test_nothing_imports_scripts_or_tests() -> None:
    scripts = ("recipes", "tests", "vit", "benchmarks")
    found = [(path, name) for path in SOURCES for name in imports_of(path) if name.split(".")[0] in scripts]
    assert not found


def test_growth_knows_torch_alone_and_one_file_each_knows_accelerate_and_torchao() -> None:
    growth_folder = PACKAGE / "growth"
    allowed = {"torch", "autoprog_diffusion", *sys.stdlib_module_names}
    outside: dict[str, set[str]] = {}
    for path in growth_folder.rglob("*.py"):
        names = {name.split(".")[0] for name in imports_of(path)} - allowed
        if names:
            outside[str(path.relative_to(growth_folder))] = names
    assert outside == {"backends/accelerate.py": {"accelerate"}, "storage/formats.py": {"torchao"}}


def test_the_import_is_light() -> None:
    code = f"import sys, autoprog_diffusion; print(sorted(set({HEAVY}) & set(sys.modules)), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900, cwd=ROOT)
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
