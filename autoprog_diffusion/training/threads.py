"""CPU threads of a run: one process without a GPU takes all idle cores, unless somebody has chosen a number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.values import JSON

from .arguments import take_flag
from .ends import launcher_command


if TYPE_CHECKING:
    from accelerate import Accelerator

AUTO = "auto"
VARIABLE = "OMP_NUM_THREADS"
LOOK = 0.3  # seconds in which cores are watched
# What a machine does beside its jobs, in cores: with less than that a core is idle.
NOISE = 0.3
QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Threads:
    """Threads that torch computes with on the CPU.

    Attributes:
        count: How many.
        reason: Who chose them, in words.
    """

    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} CPU thread{'s' * (self.count != 1)} ({self.reason})"


def threads_now() -> Threads:
    """What torch has."""
    return Threads(torch.get_num_threads(), "as they were")


def take_threads(flag: str, accelerator: Accelerator, starts: Sequence[JSON]) -> Threads:
    """Choose the number of threads, and let torch have them.

    A flag counts first, then `OMP_NUM_THREADS` where a user has set it, then what the run that is resumed had: its
    numbers stay the same to the last bit. Otherwise these are all cores that nothing else uses now. A thread too
    many is expensive: torch's threads wait for each other after every operation.

    Several processes, and those with a GPU, have what their launcher gave them, unless the flag has a number.

    Args:
        flag: `auto`, or a number.
        accelerator: Of the run.
        starts: Of the run that is resumed, the first one first.

    Raises:
        ConfigError: The flag is no number above 0.
    """
    threads = _chosen(flag, accelerator, starts)
    torch.set_num_threads(threads.count)
    before = starts[-1].get("cpu_threads") if starts else None
    if before not in (None, threads.count):
        accelerator.print(
            f"resumed with {threads} (was {before}): sums are added in another order, so that the last bits of "
            f"numbers differ from those of an unbroken run. --cpu_threads {before} keeps them."
        )
    return threads


def _chosen(flag: str, accelerator: Accelerator, starts: Sequence[JSON]) -> Threads:
    """The number of threads, and who chose it; raises as `take_threads` does."""
    check_threads(flag)
    if flag != AUTO:
        return Threads(int(flag), f"--cpu_threads {flag}")
    if accelerator.num_processes > 1 or accelerator.device.type != "cpu":
        return Threads(torch.get_num_threads(), "as they were set for this process")
    asked = threads_of_user()
    if asked is not None:
        return Threads(asked, f"{VARIABLE} is set")
    cores = available_cores()
    before = starts[-1].get("cpu_threads") if starts else None
    if before is not None and before <= cores:
        return Threads(before, "as in the run that is resumed")
    idle = idle_cores(cores)
    if idle < cores:
        return Threads(idle, f"the idle ones of {cores} cores")
    return Threads(cores, "all cores")


def check_threads(flag: str) -> None:
    """Refuse a value of `--cpu_threads`.

    Raises:
        ConfigError: It is neither `auto` nor a number above 0.
    """
    if flag != AUTO and not (flag.isdecimal() and int(flag) > 0):
        raise ConfigError(f"--cpu_threads {flag} is not allowed: use auto, or a number above 0.")


def threads_of_user() -> int | None:
    """`OMP_NUM_THREADS` where a user has set it on purpose; None where nobody, or only a launcher, has.

    `accelerate launch` sets it to 1 where nobody has. What it found itself is in the environment that it was started
    with, and what it was told in its command line.
    """
    value = os.environ.get(VARIABLE, "")
    if not value.isdecimal() or int(value) == 0:
        return None
    launcher = launcher_command()
    if launcher is None:
        return int(value)
    told, _ = take_flag(launcher, "num_cpu_threads_per_process")
    if told is not None:
        return int(value)
    try:
        found = psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return int(value)
    return int(value) if VARIABLE in found else None


def available_cores() -> int:
    """Physical cores that this process may use: of the machine, of its affinity, and of its container's quota."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no container, or one of another kind
    return max(1, cores)


def idle_cores(cores: int) -> int:
    """Cores of those that nothing uses at this moment, at least one; looks for a third of a second."""
    share = psutil.cpu_percent(interval=LOOK) / 100
    busy = share * (psutil.cpu_count() or 1)
    return max(1, min(cores, int(cores - busy + NOISE)))
