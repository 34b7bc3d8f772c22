"""A trained pipeline on disk: plain Diffusers loads the folder and gets what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from autoprog_diffusion.data.placement import is_narrow, on_device
from autoprog_diffusion.growth.errors import GrowthError


INDEX = "model_index.json"


def save_plain(pipeline: Any, denoiser: nn.Module, output: Path) -> None:
    """Write the pipeline's folder, and compare the weights that were trained with those on disk.

    Args:
        pipeline: With the trained weights.
        denoiser: The part of it that was trained.
        output: The folder.

    Raises:
        GrowthError: A file does not hold the weights.
    """
    remove_old_indices(pipeline, output)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and is_narrow(part)]
    with on_device(parts, torch.device("cpu")):
        pipeline.save_pretrained(output)
    part = next(name for name, value in pipeline.components.items() if value is denoiser)
    compare_weights(denoiser, output / part)
    print(f"load it with {loading_call(pipeline, output)}")


def remove_old_indices(pipeline: Any, output: Path) -> None:
    """Remove the lists of files of a pipeline that was saved in several files into the same folder.

    Diffusers overwrites the files, but reads such a list first, which then names files that are no more.
    """
    for name in pipeline.components:
        for index in (output / name).glob("*.index*.json"):
            index.unlink()


def loading_call(pipeline: Any, output: Path) -> str:
    """The call that loads the folder; Diffusers wants to be told of parts that a pipeline works without."""
    index = json.loads((output / INDEX).read_text(encoding="utf-8"))
    absent = [name for name, part in pipeline.components.items() if part is None and name not in index]
    arguments = "".join(f", {name}=None" for name in absent)
    return f'{type(pipeline).__name__}.from_pretrained("{output}"{arguments})'


def compare_weights(model: nn.Module, folder: Path) -> None:
    """Refuse a folder whose files do not hold a model's weights, bit by bit.

    Raises:
        GrowthError: The message names a tensor and counts all.
    """
    state = model.state_dict()
    wrong = set(state)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name in state and torch.equal(tensors.get_tensor(name), state[name].cpu()):
                    wrong.discard(name)
    if wrong:
        raise GrowthError(
            f"of {len(state)} tensors of the trained {type(model).__name__} {len(wrong)} are not in {folder} as they "
            f"were trained, for example {min(wrong)}: check the disk. The newest checkpoint still holds them; "
            "--resume_from_checkpoint latest writes the model again."
        )
