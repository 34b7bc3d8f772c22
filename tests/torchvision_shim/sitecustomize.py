"""Lets a torchvision that was built for another torch be imported, in every process that the tests start.

timm depends on torchvision, and the package registry's is built for CUDA. Beside a torch for the CPU its binary does
not load, two of its operators are then unknown ("operator torchvision::nms does not exist"), and every library that
looks for torchvision fails with it. Their schemas are enough for the import; nothing here calls them. `conftest.py`
puts this folder on PYTHONPATH: Python runs a module of this name when it starts. It waits for torchvision.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
HERE = Path(__file__).parent
KEPT: list[Any] = []  # a library's schemas go when it does


class Watcher:
    """An import hook that finds nothing, and acts once, when torchvision is looked for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = PathFinder.find_spec(name)
            if spec is not None and spec.submodule_search_locations:
                provide_operators(Path(spec.submodule_search_locations[0]))
        return None


def provide_operators(folder: Path) -> None:
    """Register the schemas that a torchvision's own binary cannot."""
    import torch

    binary = next((path for path in sorted(folder.glob("_C*")) if path.suffix in (".so", ".pyd")), None)
    try:
        if binary is not None:
            torch.ops.load_library(binary)  # what torchvision does next; a second time does nothing
            return
    except OSError:
        pass  # built for another torch
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for schema in SCHEMAS:
            library.define(schema)
        KEPT.append(library)


def install() -> None:
    """Wait for torchvision, once."""
    if any(type(finder).__name__ == "Watcher" for finder in sys.meta_path) or "torchvision" in sys.modules:
        return
    sys.meta_path.insert(0, Watcher())


def run_next() -> None:
    """Run the environment's own `sitecustomize`, which this one stands in front of."""
    others = [entry for entry in sys.path if entry and Path(entry).resolve() != HERE.resolve()]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


install()
if __name__ == "sitecustomize":
    run_next()
