"""Arrays computed once and read back from disk: latents per stage resolution, text embeddings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from tqdm.auto import tqdm

from autoprog_diffusion.files import DiskError, reserve, write_text_atomically
from autoprog_diffusion.growth.backends.ranks import checksums


if TYPE_CHECKING:
    from accelerate import Accelerator

Compute = Callable[[Sequence[int]], Tensor]
CacheType = Literal["float32", "bfloat16"]
# numpy has no bfloat16: its bits are kept as whole numbers.
KEPT_AS = {"float32": (torch.float32, np.float32), "bfloat16": (torch.bfloat16, np.int16)}


@dataclass(frozen=True)
class ArrayCache:
    """A memory-mapped array of one row per item, filled by all processes of a node together.

    Attributes:
        path: The `.npy` file; its fingerprint lies beside it.
        array: The open array, shape (items, *row).
    """

    path: Path
    array: np.ndarray

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(B,) row numbers -> (B, *row) float32 on the CPU, exactly what is kept."""
        found = torch.from_numpy(self.array[rows.cpu().numpy()])
        return found.view(torch.bfloat16).float() if found.dtype == torch.int16 else found


def build_cache(
    path: Path,
    count: int,
    compute: Compute,
    *,
    fingerprint: str,
    accelerator: Accelerator,
    batch_size: int,
    title: str,
    dtype: CacheType = "float32",
    turn: int = 0,
) -> ArrayCache:
    """Compute, or find complete on disk, one row per item.

    Args:
        path: File to keep it in; each node must see its own processes' file.
        count: Number of items.
        compute: Item numbers -> (len, *row); called without gradient.
        fingerprint: Of everything the rows depend on; a file with another one is computed anew.
        accelerator: Its processes on this node share the work.
        batch_size: Items per call of `compute`.
        title: For the progress bar.
        dtype: Rows are rounded to it. `bfloat16` takes half the space.
        turn: Which process has the first batch, so that many small files are not all computed by one; no row changes.

    Raises:
        DiskError: There is no space for the file, on any process of the node.
    """
    if dtype != "float32":
        fingerprint = f"{fingerprint} {dtype}"
    marker = path.with_name(path.name + ".json")
    error: OSError | None = None
    if not _is_current(path, marker, fingerprint):
        if accelerator.is_local_main_process:
            marker.unlink(missing_ok=True)
            with torch.no_grad():
                row = compute([0])[0]
            error = _create(path, (count, *row.shape), dtype)
        accelerator.wait_for_everyone()
        # The first process deletes what it could not create, so that all know of it.
        if not path.exists():
            raise DiskError(_no_space(path, error)) from error
        _fill(path, compute, accelerator, batch_size=batch_size, title=title, dtype=dtype, turn=turn)
        accelerator.wait_for_everyone()
        if accelerator.is_local_main_process:
            # The marker comes last: a file that has none is not complete.
            write_text_atomically(marker, json.dumps({"fingerprint": fingerprint}))
        accelerator.wait_for_everyone()
    return ArrayCache(path, np.load(path, mmap_mode="r", allow_pickle=False))


def _create(path: Path, shape: tuple[int, ...], dtype: CacheType) -> OSError | None:
    """Make the file with all of its space reserved; what prevented it, and no file then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # An old file would stand for the new one if that cannot be created.
    path.unlink(missing_ok=True)
    try:
        _, kept = KEPT_AS[dtype]
        open_memmap(path, mode="w+", dtype=kept, shape=shape).flush()
        reserve(path)
    except OSError as error:
        path.unlink(missing_ok=True)
        return error
    return None


def _no_space(path: Path, error: OSError | None) -> str:
    reason = "the first process of this node says why" if error is None else str(error)
    free = shutil.disk_usage(path.parent).free / 2**20
    return (
        f"the cache {path} cannot be written ({reason}; {free:,.0f} MiB are free). Free space, choose an --output_dir "
        "on another disk, or keep no latents with --no-cache_latents."
    )


def _fill(
    path: Path,
    compute: Compute,
    accelerator: Accelerator,
    *,
    batch_size: int,
    title: str,
    dtype: CacheType,
    turn: int,
) -> None:
    """Write this process's share of the rows."""
    rounded, _ = KEPT_AS[dtype]
    array = open_memmap(path, mode="r+")
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    first = (accelerator.local_process_index - turn) % local_processes
    starts = range(first * batch_size, len(array), local_processes * batch_size)
    for start in tqdm(starts, desc=title, disable=not accelerator.is_local_main_process, leave=False):
        rows = range(len(array))[start : start + batch_size]
        with torch.no_grad():
            values = compute(rows).to(rounded).cpu()
        bits = values.view(torch.int16) if dtype == "bfloat16" else values
        array[rows.start : rows.stop] = bits.numpy()
    array.flush()


def module_fingerprint(module: nn.Module) -> str:
    """A short hash of a module's weights."""
    sums = checksums(module.state_dict().values())
    return hashlib.sha256(sums.numpy().tobytes()).hexdigest()[:16]


def text_fingerprint(*parts: object) -> str:
    """A short hash of the parts' representations."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:16]


def _is_current(path: Path, marker: Path, fingerprint: str) -> bool:
    """Whether the array is complete and depends on what the fingerprint says."""
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        # Fails where the file lost its end.
        np.load(path, mmap_mode="r", allow_pickle=False)
        return found["fingerprint"] == fingerprint
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return False
