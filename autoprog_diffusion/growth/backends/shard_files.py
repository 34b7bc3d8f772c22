"""Tensors that are cut between processes, on disk: every process writes its shards, as many or others read them again.

The format is torch's distributed checkpoint in safetensors files: they hold tensors alone, and nothing is unpickled.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import StateError
from .ranks import rank, world_size


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's shards, and of what is whole a part; all processes must call it.

    Args:
        folder: Its parent must exist. Older shards in it are deleted, which others may have cut in another way.
        tensors: Name -> tensor, of the same names on every process.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    if rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    if world_size() > 1:
        dist.barrier()
    folder.mkdir(exist_ok=True)
    with _plain_errors():
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Read into tensors as they lie in memory, cut in any way; all processes must call it.

    Args:
        folder: That `write_shards` has filled.
        tensors: Some of those that it holds, by name.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with _plain_errors(), warnings.catch_warnings():
        # One process reads what several have written.
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)))


def stored_shards(folder: Path) -> dict[str, Tensor]:
    """Name -> whole tensor on the meta device, for shape and type of what `write_shards` has written."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    kinds: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    found = {}
    for name, kind in kinds.items():
        found[name] = torch.empty(kind.size, dtype=kind.properties.dtype, device="meta")
    return found


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn torch's collected errors, which are no `Exception`, into the first of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise StateError(f"{type(first).__name__}: {first}") from error
