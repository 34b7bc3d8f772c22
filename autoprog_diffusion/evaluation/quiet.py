"""An evaluation leaves no trace: modes, gradients and random numbers are what they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


WITHOUT_INDEX = ("cpu", "meta", "mps")  # kinds of devices of which there is one


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and nothing has a gradient; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def randomness_kept(device: torch.device) -> Iterator[None]:
    """Inside, random numbers may be drawn and seeded; torch, numpy and Python go on afterwards as if none were.

    Args:
        device: That the model is on; generators of other GPUs are left alone.
    """
    import numpy

    devices: list[Any] = []
    kind = "cuda"
    if device.type not in WITHOUT_INDEX:
        devices.append(device)
        kind = device.type
    apple = torch.mps.get_rng_state() if device.type == "mps" else None
    python = random.getstate()
    arrays = numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices, device_type=kind):
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
        random.setstate(python)
        numpy.random.set_state(arrays)


def seed_all(number: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of one device, numpy's and Python's.

    Args:
        number: 63 bits.
        device: The only GPU that is touched.
    """
    import numpy

    torch.default_generator.manual_seed(number)
    if device.type == "mps":
        torch.mps.manual_seed(number)
    elif device.type not in WITHOUT_INDEX:
        module = torch.get_device_module(device)
        with module.device(device):
            module.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number % 2**32)
