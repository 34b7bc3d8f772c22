"""The files behind a model's name: a pipeline's folder with all its parts, a single file, or something else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.training.manifest import MARKER
from autoprog_diffusion.training.plain_pipeline import INDEX


SINGLE_FILES = (".safetensors", ".ckpt")
# Parts of a pipeline that draws without them.
DISPENSABLE = ("safety_checker", "feature_extractor", "image_encoder")
# Part of a tensor's name in a checkpoint of one file -> class of the pipeline that it holds; the first match counts.
LAYOUTS = {
    "conditioner.embedders.": "StableDiffusionXLPipeline",
    "model.diffusion_model.joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
    "cond_stage_model.": "StableDiffusionPipeline",
}
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(\w+?))?(?:-\d+-of-\d+)?\.(?:safetensors|bin)$"
)
# As safetensors names them.
HALF_TYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
# Names of a VAE's attention in older files -> today's.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_single_file(name: str) -> bool:
    """Whether a model's name is a file on disk, or would be one."""
    path = Path(name)
    return path.is_file() or (path.suffix.lower() in SINGLE_FILES and not path.is_dir())


def single_file_class(name: str) -> str | None:
    """Name of the pipeline class that a single file holds; None where only loading it would tell.

    Raises:
        GrowthError: There is no such file, or it is no checkpoint of a pipeline.
    """
    path = Path(name)
    if not path.is_file():
        raise GrowthError(f"{name} does not exist: give a Diffusers folder, a Hub name, or a checkpoint file.")
    if path.suffix.lower() == ".json":
        raise GrowthError(f"{name} is a configuration, no model: give the folder that holds the {INDEX}.")
    if path.suffix.lower() != ".safetensors":
        return None
    try:
        names = _tensor_names(path)
    except SafetensorError as error:
        raise GrowthError(f"{name} cannot be loaded as a checkpoint: {error}. Download it again.") from error
    if _is_lora(names):
        raise GrowthError(f"{name} is a LoRA: give the pipeline that it was trained on.")
    for part, kind in LAYOUTS.items():
        if any(part in tensor for tensor in names):
            return kind
    example = min(names, default="nothing")
    raise GrowthError(
        f"{name} holds no whole pipeline ({len(names)} tensors, for example {example}): give the folder with the "
        f"{INDEX}, or a checkpoint with UNet, VAE and text encoder in one file."
    )


def check_folder(name: str, words: str) -> None:
    """Refuse a folder that is no complete pipeline; a Hub name passes.

    Args:
        name: Folder or Hub name.
        words: What it should be, for the message.

    Raises:
        GrowthError: The message says what the folder is instead, or which part is missing.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    begin = f"{name} cannot be loaded as {words}"
    if not (folder / INDEX).is_file():
        raise GrowthError(f"{begin}: it holds no {INDEX}. {describe_folder(folder)}")
    for part in parts_of(folder):
        if not (folder / part).is_dir() and part not in DISPENSABLE:
            raise GrowthError(f"{begin}: its {INDEX} names {part}, and there is no {part}/. Download it again.")


def describe_folder(folder: Path) -> str:
    """A sentence on a folder without an index: what it is, and what to give instead."""
    tensors = sorted(file for file in folder.glob("*.safetensors"))
    config = _read_json(folder / "config.json")
    if (folder / MARKER).is_file():
        return f"It is a checkpoint of a run: give the run's model, and --resume_from_checkpoint {folder}."
    if any(_is_lora(_names_or_nothing(file)) for file in tensors):
        return "It is a LoRA: give the pipeline that it was trained on."
    kind = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if kind:
        return f"It is one part of a pipeline, a {kind}: give the folder above it."
    files = [file for file in folder.iterdir() if file.suffix.lower() in SINGLE_FILES] if folder.is_dir() else []
    if files:
        return f"It holds checkpoint files: give one of them, for example {min(files)}."
    return "Give a folder that Diffusers' save_pretrained has written, or a Hub name."


def parts_of(folder: Path) -> list[str]:
    """Names of the parts that a pipeline's index lists, without those that are left out (null)."""
    index = _read_json(folder / INDEX)
    return [part for part, value in index.items() if is_part(part, value) and value[0] is not None]


def is_part(name: str, value: Any) -> bool:
    """Whether an entry of a pipeline's index is a part; a class of a user's own is a list too, under `_class_name`."""
    return not name.startswith("_") and isinstance(value, list) and len(value) > 0


def find_variant(name: str, wanted: str | None) -> str | None:
    """The variant of the weight files to load: the one asked for, or the only one that a folder holds.

    Args:
        name: Folder or Hub name.
        wanted: By `--variant`.

    Raises:
        GrowthError: The folder lacks the weights of a part, or there is no such variant.
    """
    folder = Path(name)
    if not folder.is_dir():
        return wanted
    found = {part: set(_variants(folder / part)) for part in parts_of(folder)}
    found = {part: variants for part, variants in found.items() if variants or _needs_weights(folder / part)}
    named = sorted({variant for variants in found.values() for variant in variants if variant})
    for part, variants in found.items():
        if not variants:
            raise GrowthError(f"{name}/{part} holds no weights (.safetensors or .bin): download it again.")
    if wanted is not None:
        if wanted not in named:
            raise GrowthError(
                f"--variant {wanted} is not allowed: {name} has the variants {named}. Leave the flag out."
            )
        return wanted
    lacking = [variants for variants in found.values() if "" not in variants]
    if not lacking:
        return None
    common = sorted(set.intersection(*lacking))
    if len(common) == 1:
        print(f"{name} holds only weights of the variant {common[0]}: they are loaded, and trained in float32.")
        return common[0]
    raise GrowthError(f"{name} holds weights of the variants {named} only: choose one with --variant {named[0]}.")


def check_weights(name: str, pipeline: Any) -> None:
    """Refuse a pipeline of whose weights some were not in its files: Diffusers draws them at random, with a warning.

    Raises:
        GrowthError: The message names the part and a tensor.
    """
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        source: Any = module
        folder = Path(str(getattr(source.config, "_name_or_path", "") or "?"))
        files = _weight_files(folder)
        names = {key for file in files for key in _tensor_names(file)}
        missing = _missing(module, names) if files else []
        if missing and any(".base_layer." in key for key in names):
            raise GrowthError(
                f"{name} was saved with adapters in its {part}, which Diffusers does not load from there: fuse them "
                "first (fuse_lora and unload_lora_weights of the pipeline), and save it again."
            )
        if missing:
            kind = type(module).__name__
            raise GrowthError(
                f"{name} is incomplete: the files of {part} lack {len(missing)} tensors of its {kind}, for example "
                f"{missing[0]}. Its config.json belongs to other weights, or a file is damaged."
            )


def stored_dtype(module: Any) -> torch.dtype:
    """The type that the files of a part of a pipeline hold its weights in; float32 where they hold several."""
    name = getattr(module.config, "_name_or_path", None) or "?"
    kinds: set[str] = set()
    for file in _weight_files(Path(str(name))):
        kinds |= _tensor_types(file)
    if len(kinds) != 1:
        return torch.float32
    return HALF_TYPES.get(kinds.pop(), torch.float32)


def _tensor_types(file: Path) -> set[str]:
    """Types of the tensors of a file, as safetensors writes them; whole numbers are left out."""
    if file.suffix == ".bin":
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file)).values()
        names = {kind: name for name, kind in HALF_TYPES.items()}
        return {names.get(tensor.dtype, "F32") for tensor in tensors if tensor.is_floating_point()}
    with safe_open(file, "pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return {kind for kind in kinds if not kind.startswith(("I", "U", "BOOL"))}


def _weight_files(folder: Path) -> list[Path]:
    """Files of the weights of a part; safetensors are loaded before others."""
    files = [file for file in sorted(folder.iterdir()) if _WEIGHTS.match(file.name)] if folder.is_dir() else []
    tensors = [file for file in files if file.suffix == ".safetensors"]
    return tensors or files


def _missing(module: nn.Module, names: set[str]) -> list[str]:
    """Names of tensors of a model that files do not hold, also not under an older name or another prefix."""
    known = {_today(name) for name in names}
    endings = {name.partition(".")[2] for name in known}
    state = module.state_dict()
    held = {name for name in state if name in endings or not known.isdisjoint(_names_in_files(name))}
    # Tied weights are stored once.
    places = {state[name].data_ptr() for name in held}
    return [name for name, value in state.items() if name not in held and value.data_ptr() not in places]


def _names_in_files(name: str) -> tuple[str, ...]:
    """What a file may call a tensor: the same, without a prefix, or as before models were told from their parts."""
    return name, name.partition(".")[2], name.replace(".language_model.", ".")


def _today(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        name = name.replace(f".{old}.", f".{new}.")
    return name


def _variants(folder: Path) -> Iterator[str]:
    """Variants of a part's weight files; the plain one is ''."""
    for file in folder.iterdir() if folder.is_dir() else ():
        match = _WEIGHTS.match(file.name)
        if match:
            yield match.group(1) or ""


def _needs_weights(folder: Path) -> bool:
    """Whether a part of a pipeline is a model: it has a configuration of one."""
    return (folder / "config.json").is_file()


def _tensor_names(file: Path) -> list[str]:
    if file.suffix == ".bin":
        # Files of before PyTorch 1.6 are no archives, and are read whole.
        return list(torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file)))
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def _names_or_nothing(file: Path) -> list[str]:
    try:
        return _tensor_names(file)
    except SafetensorError:
        return []


def _is_lora(names: list[str]) -> bool:
    return any(re.search(r"lora_(A|B|up|down)|\.lora\.|_lora\.|lora_linear_layer", name) for name in names)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
