"""Memory in use and FLOPs of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode


def peak_memory(device: torch.device) -> int:
    """Bytes: peak allocated on a CUDA device since the last call, resident memory of the process elsewhere."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return psutil.Process().memory_info().rss


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def counted_flops(counts: dict[int, int], stage: int, enabled: bool) -> Iterator[None]:
    """Count the FLOPs of the block into `counts[stage]`, once per stage, by PyTorch's own exact counter."""
    if not enabled or stage in counts:
        yield
        return
    with FlopCounterMode(display=False) as counter:
        yield
    counts[stage] = counter.get_total_flops()
