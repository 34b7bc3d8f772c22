"""Memory in use and FLOPs of a step."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from autoprog_diffusion.growth.flops import flop_counter


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


def counted_flops(run: Callable[[], object]) -> int:
    """FLOPs of `run` by PyTorch's own exact counter; the random state is left as it was."""
    with torch.random.fork_rng(), flop_counter() as counter:
        run()
    return counter.get_total_flops()
