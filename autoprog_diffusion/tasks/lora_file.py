"""The file of a LoRA: written under PEFT's own names, and read back before anybody relies on it."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import logging
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import GrowthError


WEIGHTS_FILE = "pytorch_lora_weights.safetensors"
# Name of the adapter that is read back.
READ = "read_back"


def save_lora(pipeline: Any, denoiser: nn.Module, output: Path) -> None:
    """Write `pytorch_lora_weights.safetensors`, for `pipeline.load_lora_weights(output)`.

    The keys are PEFT's own: Diffusers reads them for every layer. `convert_state_dict_to_diffusers` renames those of
    attention alone, and a file in which both kinds are mixed loads in part, without a word.

    Raises:
        GrowthError: The file does not give the adapters back.
    """
    write_lora(pipeline, denoiser, output)
    check_lora_file(pipeline, denoiser, output)


def check_lora_saves(pipeline: Any, denoiser: nn.Module) -> None:
    """Refuse adapters that a file would not give back, before they are trained.

    Raises:
        GrowthError: The message says what is lost.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_lora(pipeline, denoiser, Path(folder))


def write_lora(pipeline: Any, denoiser: nn.Module, output: Path) -> None:
    """Write the file, with PEFT's settings in its header: ranks, and scales where an alpha is not the rank."""
    name = part_name(pipeline, denoiser)
    weights = get_peft_model_state_dict(denoiser)
    metadata = _collate_lora_metadata({name: denoiser})
    layers = {f"{name}_lora_layers": weights}
    pipeline.save_lora_weights(output, **layers, **metadata)


def part_name(pipeline: Any, denoiser: nn.Module) -> str:
    """What the pipeline calls its denoiser, `unet` or `transformer`."""
    return "unet" if denoiser is getattr(pipeline, "unet", None) else "transformer"


def check_lora_file(pipeline: Any, denoiser: nn.Module, folder: Path) -> None:
    """Load a file as Diffusers does, into a plain copy of the model, and compare it with the adapters, bit by bit.

    The copy shares the weights of the base model: it needs no memory, and no second pass over the file system.

    Raises:
        GrowthError: A tensor of the file is not used, or an adapter is not given back.
    """
    name = part_name(pipeline, denoiser)
    fresh = copy.copy(pipeline)
    with _quiet():
        try:
            plain = plain_copy(denoiser)
            setattr(fresh, name, plain)
            fresh.load_lora_weights(folder, weight_name=WEIGHTS_FILE, adapter_name=READ)
        except (ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
            raise GrowthError(
                f"Diffusers cannot load the LoRA of this {type(denoiser).__name__}: {error} Choose other "
                "--target_modules; a file holds LoRA and DoRA layers alone."
            ) from error
    written = load_file(folder / WEIGHTS_FILE)
    compare_adapters(denoiser, plain, {key.removeprefix(f"{name}.") for key in written})


def compare_adapters(trained: nn.Module, loaded: nn.Module, written: set[str]) -> None:
    """Refuse adapters that are not what was trained.

    Args:
        trained: The model that was trained, with the adapter `default`.
        loaded: The model that the file was loaded into, with the adapter `read_back`.
        written: Names of the tensors in the file.

    Raises:
        GrowthError: The message names a tensor and counts all.
    """
    wanted = get_peft_model_state_dict(trained)
    found = get_peft_model_state_dict(loaded, adapter_name=READ) if hasattr(loaded, "peft_config") else {}
    unused = sorted(written - found.keys())
    if unused:
        raise GrowthError(
            f"of {len(written)} tensors in {WEIGHTS_FILE} Diffusers does not use {len(unused)}, for example "
            f"{unused[0]}: choose other --target_modules."
        )
    different = [key for key, value in wanted.items() if key not in found or not _equal(found[key], value)]
    scales = _scales(trained, "default")
    read = _scales(loaded, READ)
    different += [layer for layer, scale in scales.items() if read.get(layer) != scale]
    if different:
        raise GrowthError(
            f"of {len(wanted)} tensors of the LoRA {len(different)} do not come back from {WEIGHTS_FILE}, for example "
            f"{different[0]}: choose other --target_modules."
        )


def plain_copy(denoiser: nn.Module) -> nn.Module:
    """A model of the same class and configuration without adapters, whose weights are those of `denoiser` itself."""
    kind: Any = type(denoiser)
    with init_empty_weights():
        plain = kind.from_config(denoiser.config)
    names = plain.state_dict().keys()
    weights = {}
    for key, value in denoiser.state_dict().items():
        # PEFT moves the layer that it adapts into one of its own.
        base = key.replace(".base_layer.", ".")
        if base in names:
            weights[base] = value
    plain.load_state_dict(weights, assign=True)
    return plain.eval()


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether the values are the same; PEFT loads half precision as float32, which is exact."""
    return torch.equal(first.float(), second.to(first.device).float())


def _scales(model: nn.Module, adapter: str) -> dict[str, tuple[float, bool]]:
    """Layer -> the scale of its update, and whether its magnitude is apart (DoRA)."""
    scales = {}
    for name, module in model.named_modules():
        layer: Any = module
        if isinstance(module, BaseTunerLayer) and adapter in getattr(layer, "scaling", {}):
            apart = adapter in getattr(layer, "lora_magnitude_vector", {})
            scales[name] = (layer.scaling[adapter], apart)
    return scales


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence notes, such as that a text encoder has no adapters: the comparison says what is wrong."""
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
