"""Damaged model folders and stage embeddings: each is refused by name, or is what was saved."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from tasks.tiny import build_pipeline
from torch import Tensor

from autoprog_diffusion.adapters.saved_embedding import FILE_NAME, read_embedding, write_embedding
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.vit.models import build_model, load_model, save_model

from .mutate import changed_value, damaged, flipped, require


class Pipelines:
    """A folder that Diffusers wrote: one that lacks weights would be given random ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "pipeline"
        self._kept = build_pipeline(folder / "kept")
        shutil.copytree(self._kept, self._folder)

    def case(self, chance: random.Random) -> str:
        """Load it after damage of one file, and compare the weights with the files."""
        path = chance.choice(sorted(file for file in self._folder.rglob("*") if file.is_file()))
        content = path.read_bytes()
        try:
            damage(chance, path)
            pipeline = load_pipeline(str(self._folder))
            for part in ("unet", "vae", "text_encoder"):
                (weights,) = (self._folder / part).glob("*.safetensors")
                _require_weights(load_file(weights), getattr(pipeline, part))
        finally:
            path.write_bytes(content)
        return "loaded"


class Embeddings:
    """A saved stage embedding."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows = {"stage": torch.randn(8), "null": torch.randn(8)}
        self._about = {"points": ["time.linear_2"], "folded": True}
        write_embedding(folder, self._rows, self._about)
        self._content = (folder / FILE_NAME).read_bytes()

    def case(self, chance: random.Random) -> str:
        """Read it after damage."""
        change = flipped if chance.random() < 0.5 else damaged
        (self._folder / FILE_NAME).write_bytes(change(chance, self._content))
        rows, about = read_embedding(self._folder)
        require(about == self._about and _same(rows, self._rows), f"read {rows} and {about}")
        return "read"


class Models:
    """A folder that `save_model` wrote: its format is the library's, which has no checksum."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "model"
        self._kept = folder / "kept"
        sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "patch_size": 4}
        save_model(build_model("transformers:vit", num_classes=3, image_size=8, **sizes), self._kept)

    def case(self, chance: random.Random) -> str:
        """Load it after damage, and draw logits."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._kept, self._folder)
        damage(chance, chance.choice(sorted(self._folder.iterdir())))
        model = load_model(self._folder)
        _require_weights(load_file(self._folder / "model.safetensors"), model)
        return "loaded"


def damage(chance: random.Random, path: Path) -> None:
    """Damage a file, as values where it is JSON."""
    if path.suffix == ".json" and chance.random() < 0.6:
        path.write_text(json.dumps(changed_value(chance, json.loads(path.read_text()))))
    else:
        path.write_bytes(damaged(chance, path.read_bytes()))


def _require_weights(file: dict[str, Tensor], model: torch.nn.Module) -> None:
    """Report a finding unless all tensors of a model are a file's; its format has no checksum, so any bits will do."""
    # Names in the file are not the model's: transformers renames. Diffusers says which tensors of a file it left out.
    known = set(map(_bytes, file.values()))
    drawn = [name for name, tensor in model.state_dict().items() if _bytes(tensor) not in known]
    require(not drawn, f"of the {type(model).__name__} {drawn[:3]} are not what the file holds")


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(_bytes(first[name]) == _bytes(second[name]) for name in first)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
