"""Old import paths, for one release: `autoprog_diffusion.finetune.X` is its new module, with a warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


# Old module -> new one.
_NEW = {
    "cache": "autoprog_diffusion.data.cache",
    "captions": "autoprog_diffusion.data.captions",
    "emoji_classes": "autoprog_diffusion.data.emoji",
    "images": "autoprog_diffusion.data.images",
    "labelled_images": "autoprog_diffusion.data.labelled",
    "latents": "autoprog_diffusion.data.latents",
    "class_conditional": "autoprog_diffusion.tasks.class_conditional",
    "dreambooth": "autoprog_diffusion.tasks.dreambooth",
    "flow_families": "autoprog_diffusion.tasks.families",
    "flow_matching": "autoprog_diffusion.tasks.flow_matching",
    "labels": "autoprog_diffusion.tasks.dit_labels",
    "loading": "autoprog_diffusion.tasks.loading",
    "lora": "autoprog_diffusion.tasks.lora",
    "objective": "autoprog_diffusion.tasks.objective",
    "sdxl": "autoprog_diffusion.tasks.sdxl",
    "stable_diffusion": "autoprog_diffusion.tasks.stable_diffusion",
    "text_to_image": "autoprog_diffusion.tasks.text_to_image_recipe",
    "variance": "autoprog_diffusion.tasks.learned_variance",
    "arguments": "autoprog_diffusion.training.arguments",
    "loop": "autoprog_diffusion.training.diffusion",
    "recipe": "autoprog_diffusion.training.recipe",
    "report": "autoprog_diffusion.training.report",
    "run": "autoprog_diffusion.training.run",
    "runlog": "autoprog_diffusion.training.metrics",
    "samples": "autoprog_diffusion.training.samples",
    "setup": "autoprog_diffusion.training.build",
}
# Old module -> file that left the package.
_LEFT = {"bundled": "recipes/assets/tiny_pipelines.py", "convert": "recipes/assets/sd_to_sdxl.py"}


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        parent, _, old = name.rpartition(".")
        if parent != __name__:
            return None
        if old in _LEFT:
            raise ModuleNotFoundError(f"{name} is now {_LEFT[old]}: it left the package.")
        return ModuleSpec(name, self) if old in _NEW else None

    def exec_module(self, module: ModuleType) -> None:
        new = _NEW[module.__name__.rpartition(".")[2]]
        warnings.warn(f"{module.__name__} is now {new}; the old name goes in 0.2.", FutureWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)  # the import system takes it from there


sys.meta_path.append(_Moved())
