"""Measures how fast a machine trains: matrix products, convolutions, attention, memory, calls and AdamW."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .machine import Calibration
from .step_tracker import StepTracker


SECONDS = 1.5  # of every measurement
LEAST = 3  # runs of every measurement
ELEMENTS = 2**22  # of the tensors that bandwidth is measured with
SMALL = 64  # values of a tensor whose operations are as short as a call
PARAMETERS = 2**22
HEADS = (8, 16, 64, 128)  # numbers in a head
FLOAT = 4


class Clock:
    """Times an action on a device.

    On a CPU with one thread it is CPU time, which other processes leave alone; else wall time.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self._now = time.process_time if alone else time.perf_counter

    def seconds(self, action: Callable[[], object]) -> float:
        """The shortest time of some runs, after one that is not counted."""
        action()
        best = float("inf")
        spent = 0.0
        runs = 0
        while runs < LEAST or spent < SECONDS:
            self._wait()
            begin = self._now()
            action()
            self._wait()
            took = self._now() - begin
            best = min(best, took)
            spent += max(took, 1e-6)
            runs += 1
        return best

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def calibrate(device: torch.device, dtype: torch.dtype) -> Calibration:
    """Measure a device.

    Args:
        device: Where to train.
        dtype: Type that matrix products run in: bfloat16 under autocast, else float32.
    """
    clock = Clock(device)
    large = device.type == "cuda"
    bandwidth = _bandwidth(clock, device)
    return Calibration(
        device=torch.cuda.get_device_name(device) if large else f"{device.type}, {torch.get_num_threads()} threads",
        dtype=str(dtype).removeprefix("torch."),
        products=_speed(
            clock,
            device,
            _product(device, dtype, 4096 if large else 512),
        ),
        convolutions=_speed(
            clock,
            device,
            _convolution(device, dtype, 64 if large else 16),
        ),
        attention={
            head: _speed(
                clock,
                device,
                _attention(device, dtype, 4096 if large else 512, head),
            )
            for head in HEADS
        },
        bandwidth=bandwidth,
        call=_call(clock, device),
        optimizer=_optimizer(clock, device),
    )


def _speed(clock: Clock, device: torch.device, loss: Callable[[], Tensor]) -> float:
    """FLOP/s of a forward and backward pass."""

    def step() -> None:
        loss().backward()

    with StepTracker(device.type) as tracker:
        step()
    return tracker.work.flops / clock.seconds(step)


def _product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], Tensor]:
    layer = nn.Linear(size, size, device=device, dtype=dtype)
    x = torch.randn(
        size,
        size,
        device=device,
        dtype=dtype,
        requires_grad=True,
    )
    return lambda: layer(x).sum()


def _convolution(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[], Tensor]:
    channels = 4 * side
    layer = nn.Conv2d(
        channels,
        channels,
        3,
        padding=1,
        device=device,
        dtype=dtype,
    )
    x = torch.randn(
        2,
        channels,
        side,
        side,
        device=device,
        dtype=dtype,
        requires_grad=True,
    )
    return lambda: layer(x).sum()


def _attention(device: torch.device, dtype: torch.dtype, tokens: int, head: int) -> Callable[[], Tensor]:
    x = torch.randn(
        1,
        8,
        tokens,
        head,
        device=device,
        dtype=dtype,
        requires_grad=True,
    )
    return lambda: F.scaled_dot_product_attention(x, x, x).sum()


def _bandwidth(clock: Clock, device: torch.device) -> float:
    """Bytes/s that an addition reads and writes."""
    x = torch.ones(ELEMENTS, device=device)
    y = torch.ones_like(x)
    return 3 * FLOAT * ELEMENTS / clock.seconds(lambda: x + y)


def _call(clock: Clock, device: torch.device) -> float:
    """Seconds of an operation on almost nothing, that of its backward pass included."""
    repeats = 200
    x = torch.ones(SMALL, device=device, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(repeats):
            y = y * 1.0
        y.sum().backward()

    return clock.seconds(chain) / (2 * repeats)


def _optimizer(clock: Clock, device: torch.device) -> float:
    """Seconds a parameter of AdamW's step."""
    weight = nn.Parameter(torch.ones(PARAMETERS, device=device))
    weight.grad = torch.full_like(weight, 1e-3)
    optimizer = torch.optim.AdamW([weight], lr=1e-6)
    return clock.seconds(optimizer.step) / PARAMETERS
