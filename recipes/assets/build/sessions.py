"""Training in sessions: a run that is cut goes on from its last state, at its place in the schedule."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


class Clock:
    """Progress from 0 to 1: by steps if their number is given, else by the wall time of all sessions together."""

    def __init__(self, minutes: float, steps: int | None, spent: float) -> None:
        self.seconds = 60 * minutes
        self.steps = steps
        self.start = time.monotonic() - spent

    def spent(self) -> float:
        return time.monotonic() - self.start

    def progress(self, step: int) -> float:
        return min(1.0, step / self.steps if self.steps else self.spent() / self.seconds)


def learning_rate(peak: float, step: int, progress: float, warmup: int = 200) -> float:
    """Warms up over steps, then follows a cosine over progress down to 0."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> torch.Tensor:
    """Every image once per epoch, in an order that depends on seed and epoch alone."""
    epoch, batch = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
    return order[batch * batch_size : (batch + 1) * batch_size]


def ticks(clock: Clock, step: int, title: str) -> Iterator[tuple[int, float]]:
    """Yields step and progress until progress reaches 1, with a progress bar in per cent."""
    with tqdm(total=100.0, desc=title, unit="%", bar_format="{l_bar}{bar}| {elapsed}{postfix}", mininterval=5) as bar:
        while (progress := clock.progress(step)) < 1:
            bar.n = round(100 * progress, 1)
            bar.set_postfix(step=step, refresh=False)
            bar.update(0)
            yield step, progress
            step += 1


def save_state(path: Path, **state: Any) -> None:
    """Writes a state atomically."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)  # atomic: a session cut here leaves the last good state


def load_state(path: Path) -> dict[str, Any]:
    """Reads a state, empty if there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
