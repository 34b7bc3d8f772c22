"""`Readings`: losses and norms of optimizer steps, which stay on the device until several of them are read at once."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoints import check_finite
from .ends import Ends
from .measure import synchronize
from .optimizer_step import StepDone


if TYPE_CHECKING:
    from accelerate import Accelerator

# Steps between readings: reading makes the host wait for the device, which then has nothing to do for a moment.
EVERY = {"cpu": 1}
ELSEWHERE = 10
# Seconds that steps may go unread: with longer ones that wait is nothing, and a signal is heard sooner.
LONGEST = 2.0


@dataclass(frozen=True)
class Read:
    """What a reading tells of one optimizer step.

    Attributes:
        row: Its metrics.
        step: Number of optimizer steps done by then.
        norm: Of the gradient before it was clipped; None without clipping.
    """

    row: dict[str, float]
    step: int
    norm: float | None


class Readings:
    """Keeps what steps leave on the device, and reads it.

    All ranks read after the same steps: the mean over them, and whether one of them heard a signal, are agreed on in
    one message.

    Args:
        accelerator: Of the run.
        every: Steps between readings; None reads every step on the CPU, where nothing is waited for, and every tenth
            elsewhere.

    Attributes:
        asked: Number of a signal that some rank had heard at the last reading; 0 without one, and with one rank.
    """

    def __init__(self, accelerator: Accelerator, every: int | None) -> None:
        self.asked = 0
        self._accelerator = accelerator
        self._device: torch.device = accelerator.device
        self._every = every or EVERY.get(self._device.type, ELSEWHERE)
        self._unread: list[tuple[dict[str, float], int, StepDone]] = []
        self._began = (0.0, 0.0)  # wall clock and CPU clock before the first unread step
        self._seconds = LONGEST  # of a step, at the last reading, over all ranks

    def begin(self) -> None:
        """An optimizer step begins."""
        # On the CPU nothing runs on after a step, so that each has its own time.
        if not self._unread or self._device.type == "cpu":
            self._began = (time.perf_counter(), time.process_time())

    def add(self, row: dict[str, float], step: int, done: StepDone) -> None:
        """An optimizer step has ended.

        Args:
            row: Its metrics but loss and times.
            step: Number of optimizer steps done.
            done: What it left.
        """
        if self._device.type == "cpu":
            row = row | self._times(1)
        self._unread.append((row, step, done))

    @property
    def due(self) -> bool:
        """Whether it is time to read."""
        if not self._unread:
            return False
        _, step, _ = self._unread[-1]
        return step % self._every == 0 or len(self._unread) * self._seconds >= LONGEST

    def read(self, ends: Ends) -> list[Read]:
        """The steps since the last reading; all ranks call it after the same step.

        Args:
            ends: What hears signals on this rank.
        """
        unread = self._unread
        self._unread = []
        if not unread:
            return []
        losses = self._agree(torch.stack([done.loss.float() for _, _, done in unread]), ends)
        synchronize(self._device)
        times = {} if self._device.type == "cpu" else self._times(len(unread))
        found = []
        for (row, step, done), loss in zip(unread, losses):
            norm = None if done.norm is None else float(done.norm)
            found.append(Read(row | times | {"loss": loss}, step, norm))
        return found

    def _times(self, steps: int) -> dict[str, float]:
        """Seconds of a step since `begin`."""
        wall, cpu = self._began
        return {
            "seconds": (time.perf_counter() - wall) / steps,
            "cpu_seconds": (time.process_time() - cpu) / steps,
        }

    def _agree(self, losses: Tensor, ends: Ends) -> list[float]:
        """Means over the ranks; in the same message they agree on whether a signal ends the run with this step.

        Args:
            losses: Of this rank, (steps,).
            ends: Of this rank.
        """
        seconds = self._times(len(losses))["seconds"]
        if self._accelerator.num_processes == 1:
            self._seconds = seconds
            return losses.tolist()
        own = ends.asked
        more = losses.new_tensor([seconds, float(own > 0)])
        agreed: Any = self._accelerator.reduce(torch.cat([losses, more]), reduction="mean")
        *means, self._seconds, share = agreed.tolist()
        # A rank that heard nothing learns from the others that it is over, not by which signal.
        self.asked = (own or signal.SIGTERM) if share > 0 else 0
        return means


def check_read(read: Read, flag: str, root: Path, *, scaled: bool) -> None:
    """Refuse to go on with a loss or a norm that is infinite or no number.

    Args:
        read: Of a step.
        flag: Which one to lower.
        root: Folder of the run's checkpoints.
        scaled: Whether a gradient scaler skips steps whose gradients are not finite by itself.

    Raises:
        TrainingError: The message names the step, a cure, and the checkpoint that is left.
    """
    values = {"loss": read.row["loss"]}
    if read.norm is not None and not scaled:
        values["gradient's norm"] = read.norm
    where = f"at step {read.step - 1}, stage {int(read.row['stage']) + 1}"
    for name, value in values.items():
        check_finite(value, f"the {name} is {value} {where}: lower {flag}", root)
