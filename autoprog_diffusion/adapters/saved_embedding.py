"""A stage embedding on disk, and sampling with it: the unconditional half of guidance has the null row."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import StateError
from autoprog_diffusion.growth.state import NamedTensors
from autoprog_diffusion.growth.values import JSON

from .timestep import linear


FILE_NAME = "stage_embedding.safetensors"
LATENTS = ("hidden_states", "sample", "x")  # what denoisers call them
# Pipelines that put the unconditional half of a doubled batch last.
UNCONDITIONAL_LAST = ("DiTPipeline", "ZImagePipeline", "StableCascadePriorPipeline", "LuminaPipeline")


def write_embedding(folder: str | Path, rows: NamedTensors, about: JSON) -> None:
    """Write the final stage's row, the null row if there is one, and what they belong to.

    Args:
        folder: Folder of the checkpoint that they travel with.
        rows: `stage` (D,), and `null` (D,) with stage dropout.
        about: `points`, names of the layers they enter at; `folded`, whether the checkpoint's weights hold the
            stage row.
    """
    from safetensors.torch import save_file

    tensors = {name: row.detach().cpu().clone() for name, row in rows.items()}  # a row alone, not a view of the table
    words = json.dumps(about)
    metadata = {"stage_embedding": words, "checksum": _checksum(tensors, words)}
    save_file(tensors, Path(folder) / FILE_NAME, metadata=metadata)


@contextlib.contextmanager
def use_stage_embedding(pipeline: Any, folder: str | Path, unconditional: str | None = None) -> Iterator[None]:
    """Sample with the stage embedding that was saved beside a checkpoint, as the paper does.

    Inside, the denoiser has the final stage's row, and in classifier-free guidance its unconditional half has the null
    row (AutoProg-Zero, SID dropout). Outside, the pipeline is as it was. A pipeline from a full fine-tuning without
    stage dropout needs none of this: its weights hold the row.

    Args:
        pipeline: A Diffusers pipeline with the fine-tuned weights or LoRA loaded.
        folder: The folder that `GrowthScheduler.save_stage_embedding` was given.
        unconditional: Which half of a doubled batch is unconditional, `first` or `second`; by default what the
            pipeline's class does. Pipelines that call the denoiser twice need none.

    Raises:
        StateError: The folder holds no stage embedding, or one for another model.

    Example:
        >>> with use_stage_embedding(pipeline, "out"):  # doctest: +SKIP
        ...     image = pipeline("a red apple").images[0]
    """
    denoiser = _denoiser(pipeline)
    rows, about = read_embedding(folder)
    layers = [_layer(denoiser, name, rows["stage"]) for name in about["points"]]
    half = _Halves(pipeline, _is_last(pipeline, unconditional))
    stage = rows["stage"]
    # Weights that hold the stage's row already need the difference to it.
    held = stage if about["folded"] else torch.zeros_like(stage)
    null = rows.get("null", stage)

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Forward hook of the layers: (N, ..., D) -> the same plus every sample's row."""
        return output + half.select(output, stage - held, null - held)

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(add))
        hooks.enter_context(denoiser.register_forward_pre_hook(half.begin, with_kwargs=True))
        hooks.enter_context(half.watching(denoiser))
        yield


def read_embedding(folder: str | Path) -> tuple[NamedTensors, JSON]:
    """Read what `write_embedding` wrote: rows by name, and what they belong to.

    Raises:
        StateError: There is no such file, it is damaged, or it is another one.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise StateError(f"{folder} holds no {FILE_NAME}: give the folder that growth.save_stage_embedding wrote to.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StateError(f"{path} is damaged: {error}.") from error
    words = metadata.get("stage_embedding")
    if words is None:
        raise StateError(f"{path} is not a stage embedding of this library: its header says nothing about one.")
    # Files that are older than checksums have none.
    known = metadata.get("checksum")
    if known not in (None, _checksum(rows, words)):
        raise StateError(f"{path} is damaged: it changed since it was written.")
    try:
        about = json.loads(words)
    except ValueError as error:
        raise StateError(f"{path} is damaged: {error}.") from error
    whole = isinstance(about, dict) and "points" in about and "folded" in about
    if not whole or "stage" not in rows:
        raise StateError(f"{path} is damaged: it lacks the stage's row, or where the row enters.")
    return rows, about


def _checksum(rows: NamedTensors, words: str) -> str:
    """Of the rows' names and bytes, and of the words about them."""
    value = zlib.crc32(words.encode())
    for name in sorted(rows):
        row = rows[name].contiguous()
        content = row.view(torch.uint8).numpy()
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(content.tobytes(), value)
    return f"{value:08x}"


def find_latents(args: Any, kwargs: Any) -> Any:
    """The latents in a denoiser's call: a tensor (N, ...), or a list with one tensor per sample."""
    named = map(kwargs.get, LATENTS)
    for value in (*named, *args, *kwargs.values()):
        if value is not None and (not isinstance(value, Tensor) or value.dim() > 0):
            return value
    raise StateError("the denoiser was called without latents.")


def row_per_sample(mask: Tensor, null: Tensor, stage: Tensor, like: Tensor) -> Tensor:
    """Row `null` (D,) where `mask` (N,) is true, else `stage` (D,); shaped (N, 1, ..., D) to add to `like`."""
    return torch.where(mask.view(-1, *[1] * (like.dim() - 1)), null, stage)


class _Halves:
    """Knows which rows of the denoiser's current call are unconditional.

    Args:
        pipeline: Says whether it guides.
        last: Whether the unconditional half of a doubled batch is the second.
    """

    def __init__(self, pipeline: Any, last: bool) -> None:
        self._pipeline = pipeline
        self._last = last
        self._context = ""  # name of the current call
        self._doubled = False

    @contextlib.contextmanager
    def watching(self, denoiser: Any) -> Iterator[None]:
        """Learn the name of every call, from pipelines that call the denoiser twice (Diffusers' cache contexts)."""
        if not hasattr(denoiser, "cache_context"):
            yield
            return
        original = denoiser.cache_context

        @contextlib.contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            self._context = name
            try:
                with original(name, *args, **kwargs):
                    yield
            finally:
                self._context = ""

        denoiser.cache_context = cache_context
        try:
            yield
        finally:
            del denoiser.cache_context

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Find out whether the batch is doubled: it then holds the same latents twice."""
        latents = find_latents(args, kwargs)
        half = len(latents) // 2
        first, second = latents[:half], latents[half:]
        guided = getattr(self._pipeline, "do_classifier_free_guidance", True)
        self._doubled = guided and 0 < len(first) == len(second) and all(map(torch.equal, first, second))

    def select(self, output: Tensor, stage: Tensor, null: Tensor) -> Tensor:
        """The row for every sample of (N, ..., D): (D,), or (N, 1, ..., D)."""
        stage = stage.to(output)
        null = null.to(output)
        if self._context.startswith("uncond"):
            return null
        if self._context == "cond" or not self._doubled:
            return stage
        second = torch.arange(len(output), device=output.device) >= len(output) // 2
        return row_per_sample(second == self._last, null, stage, output)


def _is_last(pipeline: Any, unconditional: str | None) -> bool:
    """Whether the unconditional half is the second: as the caller says, or as the pipeline's class does."""
    if unconditional not in (None, "first", "second"):
        raise StateError(f"unconditional={unconditional!r} is not allowed: use first, second or None.")
    if unconditional is None:
        return type(pipeline).__name__ in UNCONDITIONAL_LAST
    return unconditional == "second"


def _denoiser(pipeline: Any) -> Any:
    """The module of a pipeline that predicts noise, velocity or image, under the names that Diffusers uses."""
    for name in ("unet", "transformer", "prior"):
        found = getattr(pipeline, name, None)
        if isinstance(found, nn.Module):
            return found
    raise StateError(f"{type(pipeline).__name__} has no denoiser called unet, transformer or prior.")


def _layer(denoiser: nn.Module, name: str, row: Tensor) -> nn.Module:
    """The layer of that name, after checking that the stage's row (D,) fits its output."""
    known = dict(denoiser.named_modules())
    if name not in known or linear(denoiser, name).out_features != len(row):
        raise StateError(
            f"the stage embedding enters at {name!r} with width {len(row)}, and this {type(denoiser).__name__} has no "
            "such layer: it belongs to another model."
        )
    return known[name]
