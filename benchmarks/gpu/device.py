"""The device: its clock, its memory, and what is known of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

from autoprog_diffusion.training.measure import peak_memory, synchronize


GB = 1e9


def find_device(*, dry: bool) -> torch.device:
    """The CUDA device, or the CPU in a dry run.

    Raises:
        SystemExit: There is no CUDA device.
    """
    if dry:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: models of published size need one. --dry_run runs the same code on the CPU.")
    return torch.device("cuda", torch.cuda.current_device())


def times(device: torch.device, step: Callable[[], None], count: int) -> list[float]:
    """Seconds of so many steps: between events of the CUDA stream, which is waited for once, after the last one."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(count):
            step()
            marks.append(time.perf_counter())
        return [later - earlier for earlier, later in zip(marks, marks[1:])]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    synchronize(device)
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    synchronize(device)
    return [earlier.elapsed_time(later) / 1000 for earlier, later in zip(events, events[1:])]


def waiting_clock(device: torch.device) -> Callable[[], float]:
    """A clock of seconds that waits for the device before it is read."""

    def read() -> float:
        synchronize(device)
        return time.perf_counter()

    return read


def begin_peak(device: torch.device) -> None:
    """Set the peaks back to what is held now, with nothing kept in reserve."""
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    peak_memory(device)


def read_peak(device: torch.device) -> dict[str, int]:
    """Bytes: the most that was allocated, and reserved, since `begin_peak`; resident memory on the CPU."""
    synchronize(device)
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0
    return {"reserved": reserved, "allocated": peak_memory(device)}


def total_memory(device: torch.device) -> float:
    """Memory of the device, in 10^9 bytes; one in a dry run."""
    return torch.cuda.get_device_properties(device).total_memory / GB if device.type == "cuda" else 1.0


def describe(device: torch.device) -> dict[str, Any]:
    """Driver, libraries and settings that decide about speed."""
    found: dict[str, Any] = {
        "python_threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "autocast": "bfloat16",
        "optimizer": "AdamW, fused, unless the way names another",
        "memory_gb": total_memory(device),
    }
    if device.type != "cuda":
        return found
    capability = torch.cuda.get_device_capability(device)
    return found | {
        "compute_capability": ".".join(map(str, capability)),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "driver": driver(),
    }


def driver() -> str:
    """Version of the driver, by its own tool."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return next(iter(done.stdout.split()), "unknown")
