"""`PowerState`: the averages of a `PowerAverage` in states, files and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .averaged_weights import AveragedWeights
from .backends.fsdp2 import local_part
from .backends.ranks import rank
from .errors import StateError
from .power_snapshots import (
    FILE,
    VERSION,
    check_fits,
    check_kind,
    read_state,
    reader,
    reconstruct,
    snapshots_in,
    write_cut_state,
    write_state,
)


logger = logging.getLogger(__name__)


class PowerState:
    """What was averaged so far, written and read again."""

    width: float
    steps: int
    _accelerator: Any
    _averages: dict[float, dict[str, Tensor]]
    _begin_anew: bool
    _dtype: torch.dtype
    _expected: int | None
    _tracked: tuple[float, ...]
    _weights: AveragedWeights

    def state_dict(self) -> dict[str, Any]:
        """Number of steps, widths that are tracked and their averages, copied to the CPU.

        Of sharded parameters these are DTensors, for `torch.distributed.checkpoint`.
        """
        averages = []
        for width in self._tracked:
            copies = self._room()
            for name, copy in copies.items():
                local_part(copy).copy_(self._averages[width][name])
            averages.append(copies)
        return self._state(averages)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, bit for bit.

        Averages may be whole, also where parameters are sharded.

        Raises:
            StateError: It is no state of averages, or one of other widths, parameters or types.
        """
        check_kind(state_dict, "the state")
        check_fits(state_dict, self._tracked, self._room())
        for width, loaded in zip(self._tracked, state_dict["averages"]):
            for name, value in self._weights.parts(loaded):
                self._averages[width][name].copy_(value)
        self.steps = state_dict["step"]
        self._expected = state_dict["growth_step"]

    def reconstruct(self, width: float, paths: Iterable[str | Path] = ()) -> None:
        """Put together the average of another width, after the last step, and use it; checkpoints do not hold it.

        Where parameters are sharded, all processes must call it.

        Args:
            width: Relative width.
            paths: Files that `save` wrote in this run, and `power_average.pt` of its checkpoints.

        Raises:
            ConfigError: The snapshots do not suffice for it.
            StateError: A file holds something else, or averages of other parameters.
        """
        own = self.state_dict()
        known = snapshots_in(own, own["averages"].__getitem__)
        for path in map(Path, paths):
            state = read_state(path)
            known += snapshots_in(state, reader(path, state, self._room))
        found = reconstruct(known, width, self.steps, self._weights.parts)
        old = self._averages[self.width]
        self._averages[width] = {name: value.to(old[name].device, self._dtype) for name, value in found.items()}
        self.width = width

    def save(self, path: str | Path) -> None:
        """Write a snapshot: all averages, whole.

        Every process has the same ones, so let one write; unless parameters are sharded: then all must call it, and
        the first one, in whose CPU memory the averages are gathered, writes.
        """
        if not self._weights.are_cut:
            write_state(path, self.state_dict())
            return
        whole = [self._weights.whole(self._averages[width]) for width in self._tracked]
        try:
            if rank() == 0:
                write_state(path, self._state(whole))
        finally:
            dist.barrier()  # the file is there for all

    def _state(self, averages: list[dict[str, Tensor]]) -> dict[str, Any]:
        """What `state_dict` returns, with these averages of the widths that are tracked."""
        return {
            "version": VERSION,
            "step": self.steps,
            "growth_step": self._expected,
            "widths": list(self._tracked),
            "averages": averages,
        }

    def _room(self) -> dict[str, Tensor]:
        """Name -> empty tensor for an average, on the CPU, cut as the parameter is."""
        return self._weights.room(self._dtype)

    def _save_in_checkpoint(self, models: list[Any], weights: list[Any], folder: str) -> None:
        """Write the averages into a checkpoint; an `accelerator.register_save_state_pre_hook` hook."""
        everywhere = self._accelerator.project_configuration.save_on_each_node
        writes = self._accelerator.is_local_main_process if everywhere else self._accelerator.is_main_process
        path = Path(folder) / FILE
        if self._weights.are_cut:
            write_cut_state(path, self.state_dict(), head=writes)
        elif writes:
            self.save(path)

    def _load_from_checkpoint(self, models: list[Any], folder: str) -> None:
        """Read them from one; an `accelerator.register_load_state_pre_hook` hook."""
        path = Path(folder) / FILE
        if path.exists():
            state = read_state(path)
            read = reader(path, state, self._room)
            self.load_state_dict({**state, "averages": [read(index) for index in range(len(state["widths"]))]})
            return
        if not self._begin_anew:
            raise StateError(
                f"{folder} holds no average of the weights ({FILE}), since its run tracked none: resume it with "
                "begin_anew=True, which begins an average at its step, or without an average."
            )
        self.steps = 0
        self._expected = None
        logger.warning(f"{folder} holds no average of the weights: one begins at its step, and knows none before it.")
