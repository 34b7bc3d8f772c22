"""Probes of the gradient noise scale of a run: replayed training calls in, `NoiseScale` out, without leaving a trace.

The parameters that train at the time are measured, with dropout off. Every call is replayed twice: first for the sum
of all gradients, then for the product of each with the sum, which the jackknife needs. So one gradient and one sum of
them are held at a time, however many calls there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autoprog_diffusion.growth.backends.fsdp2 import is_sharded
from autoprog_diffusion.growth.backends.ranks import unwrap, world_size
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.search_session import LossFunction
from autoprog_diffusion.growth.state import NamedTensors
from autoprog_diffusion.growth.units import trainable_now

from .consensus import gather
from .noise_estimate import FEWEST_CALLS, CallProducts, NoiseScale
from .probe import leaving_no_trace
from .recorded_calls import CallRecorder, RecordedCall, calls_from_loss, take_gradients


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler

CALLS = 16
WHOLE = "model"  # name of the only unit, where no growth names several


class NoiseProbe:
    """Keeps the last training calls of a loop, and measures the noise scale from them when it is asked.

    Args:
        model: What the loop calls: as `accelerator.prepare` returned it.
        calls: Number of calls to keep: their inputs, and the gradients of their outputs.
        growth: The loop's scheduler, after `growth.prepare`, if there is one. Its units are measured one by one.
        accelerator: The loop's accelerator, if there is one.

    Raises:
        SearchError: A gradient scaler or sharded parameters are in use, or there are fewer than three calls in all.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        calls: int = CALLS,
        growth: GrowthScheduler | None = None,
        accelerator: Any = None,
    ) -> None:
        check_host(model, accelerator, calls)
        self._model = unwrap(model)
        self._growth = growth
        self._recorder = CallRecorder(model, calls)
        self._recorder.start()

    def measure(self) -> NoiseScale:
        """Measure now, and keep no more calls; every rank must take part, and gets the same answer.

        Raises:
            SearchError: On every rank: there are fewer than three calls in all, or a gradient is not finite.
        """
        calls = list(self._recorder.calls)
        self._recorder.stop()
        return measure_calls(self._model, lambda: calls, self._growth)


def gradient_noise(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    calls: int = CALLS,
    growth: GrowthScheduler | None = None,
    accelerator: Any = None,
) -> NoiseScale:
    """Measure the noise scale before training, or between two steps; nothing trains.

    Args:
        model: As `accelerator.prepare` returned it; `loss_fn` gets it without DistributedDataParallel.
        loss_fn: `loss_fn(model, batch) -> loss`, the mean over the samples of a batch.
        batches: Independent batches, other ones on every rank.
        calls: How many of them are taken.
        growth: The loop's scheduler, after `growth.prepare`, if there is one. Its units are measured one by one.
        accelerator: The loop's accelerator, if there is one.

    Raises:
        SearchError: On every rank: a gradient scaler or sharded parameters are in use, there are fewer than three
            calls in all, or a gradient is not finite.
    """
    check_host(model, accelerator, calls)
    inner = unwrap(model)
    return measure_calls(inner, lambda: calls_from_loss(inner, loss_fn, batches, calls), growth)


def check_host(model: nn.Module, accelerator: Any, calls: int) -> None:
    """Refuse what the probe cannot work with.

    Raises:
        SearchError: The message says what it is, and what to do.
    """
    if calls * world_size() < FEWEST_CALLS:
        raise SearchError(
            f"calls={calls} is not allowed: at least {FEWEST_CALLS} on all ranks together are compared with one "
            f"another, and {CALLS} are a good number."
        )
    if getattr(accelerator, "scaler", None) is not None:
        raise SearchError(
            "the noise scale cannot be measured under a half-precision gradient scaler (mixed_precision='fp16'), "
            "under which gradients overflow at times: use bf16, or measure in float32."
        )
    if is_sharded(unwrap(model)):
        raise SearchError("the noise scale cannot be measured with sharded parameters (FSDP): measure on one process.")


def measure_calls(
    model: nn.Module, calls: Callable[[], Sequence[RecordedCall]], growth: GrowthScheduler | None = None
) -> NoiseScale:
    """The noise scale of the parameters of a bare model that train now.

    Args:
        model: The bare model.
        calls: Gives this rank's calls, when the model is ready for them.
        growth: Its scheduler, if there is one.

    Raises:
        SearchError: As `NoiseProbe.measure`.
    """
    names = sorted(trainable_now(model))
    units = _unit_names(names, growth)
    embedding: Any = None if growth is None else growth.stage_embedding
    others = [] if embedding is None else [embedding]
    replaying = nullcontext() if growth is None else growth.replaying()
    with replaying, leaving_no_trace(model, *others, names=names):
        for other in others:
            # Its gradient is not measured, and must not be averaged over ranks here.
            other.requires_grad_(requires_grad=False)
        taken: list[RecordedCall] = []
        totals: NamedTensors = {}

        def sum_up() -> int:
            taken.extend(map(_checked, calls()))
            totals.update(_sum_of_gradients(model, names, taken))
            return len(taken)

        gather(sum_up)  # no rank waits in a reduction for one that failed
        if world_size() > 1:
            for name in names:
                dist.all_reduce(totals[name])
        products = gather(lambda: list(_products(model, taken, totals, units)))
    return NoiseScale(tuple(call for rank in products for call in rank))


def _unit_names(names: Iterable[str], growth: GrowthScheduler | None) -> dict[str, str]:
    """Name of a parameter -> name of its unit."""
    units = dict.fromkeys(names, WHOLE)
    if growth is not None:
        for unit in growth.layout.units:
            units.update({name: unit.name for name in unit.parameters if name in units})
    return units


def _checked(call: RecordedCall) -> RecordedCall:
    if torch.float16 in (call.gradient.dtype, call.autocast):
        raise SearchError("the noise scale cannot be measured in float16, where gradients are scaled: use bfloat16.")
    return call


def _sum_of_gradients(model: nn.Module, names: Iterable[str], calls: Iterable[RecordedCall]) -> NamedTensors:
    """Sum over calls of every parameter's gradient, at least in float32; zero where none has one."""
    parameters = dict(model.named_parameters())
    totals = {name: torch.zeros_like(_wide(parameters[name].detach())) for name in names}
    for call in calls:
        call.replay(model)
        for name, gradient in take_gradients(model).items():
            totals[name] += gradient
    return totals


def _products(
    model: nn.Module, calls: Iterable[RecordedCall], totals: NamedTensors, units: dict[str, str]
) -> Iterator[CallProducts]:
    """Products of the gradient of every call, unit by unit."""
    for number, call in enumerate(calls):
        call.replay(model)
        squares = dict.fromkeys(units.values(), 0.0)
        products = dict.fromkeys(units.values(), 0.0)
        for name, gradient in take_gradients(model).items():
            wide = _wide(gradient).flatten()
            squares[units[name]] += torch.dot(wide, wide).item()
            products[units[name]] += torch.dot(wide, totals[name].flatten()).item()
        if not all(map(math.isfinite, (*squares.values(), *products.values()))):
            raise SearchError(f"the gradient of training call {number} is not finite: lower the learning rate.")
        yield CallProducts(samples=call.batch, squares=squares, products=products)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
