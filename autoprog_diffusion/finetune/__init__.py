"""Old import paths, for one release: `autoprog_diffusion.finetune.X` is its new module, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


_MOVED = {
    "data": {"cache": "cache", "captions": "captions", "emoji_classes": "emoji", "images": "images",
             "labelled_images": "labelled", "latents": "latents"},
    "tasks": {"bundled": "tiny_pipelines", "class_conditional": "class_conditional", "convert": "sd_to_sdxl",
              "dreambooth": "dreambooth", "flow_families": "flow_families", "flow_matching": "flow_matching",
              "labels": "dit_labels", "loading": "loading", "lora": "lora", "objective": "objective", "sdxl": "sdxl",
              "stable_diffusion": "stable_diffusion", "text_to_image": "text_to_image_recipe",
              "variance": "learned_variance"},
    "training": {"arguments": "arguments", "loop": "diffusion", "recipe": "recipe", "report": "report", "run": "run",
                 "runlog": "metrics", "samples": "samples", "setup": "build"},
}  # fmt: skip
_NEW = {old: f"autoprog_diffusion.{part}.{new}" for part, names in _MOVED.items() for old, new in names.items()}


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        parent, _, old = name.rpartition(".")
        return ModuleSpec(name, self) if parent == __name__ and old in _NEW else None

    def exec_module(self, module: ModuleType) -> None:
        new = _NEW[module.__name__.rpartition(".")[2]]
        warnings.warn(f"{module.__name__} is now {new}; the old name goes in 0.2.", FutureWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)  # the import system takes it from there


sys.meta_path.append(_Moved())
