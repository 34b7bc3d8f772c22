"""Recorded calls of the denoiser: its inputs during training, and the gradient that the user's loss sent back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import islice
from operator import methodcaller
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.search_session import LossFunction
from autoprog_diffusion.growth.state import NamedTensors


@dataclass(frozen=True)
class RecordedCall:
    """One call of a model on a mini-batch.

    Attributes:
        args: Positional inputs, a tuple.
        kwargs: Keyword inputs, a dictionary.
        gradient: Gradient of the user's loss with respect to the output, same shape as the output (N, ...).
        listed: Whether the model takes and returns lists with one tensor per sample (Z-Image).
        autocast: Type of the autocast that the loop called the model in, if there was one.
    """

    args: Any
    kwargs: Any
    gradient: Tensor
    listed: bool = False
    autocast: torch.dtype | None = None

    @property
    def batch(self) -> int:
        """Number of samples, N."""
        return len(self.gradient)

    def run(self, model: nn.Module) -> Tensor:
        """The model's output (N, ...) on these inputs."""
        autocast = nullcontext()
        if self.autocast is not None:
            autocast = torch.autocast(self.gradient.device.type, self.autocast)
        with autocast:
            return output_tensor(model(*self.args, **self.kwargs))

    def replay(self, model: nn.Module) -> None:
        """One forward and backward pass: adds the loss's gradients to those of the model's parameters."""
        self.run(model).backward(self.gradient)

    def sample(self, index: int) -> RecordedCall:
        """The call with one sample only."""
        return self._part(slice(index, index + 1))

    def first(self, count: int) -> RecordedCall:
        """The call with at most `count` samples."""
        return self._part(slice(count))

    def _part(self, part: slice) -> RecordedCall:
        """The call with the samples that `part` selects, along the first axis of every batch."""

        def cut(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.dim() > 0
            is_list = self.listed and isinstance(value, list)
            if (is_batch or is_list) and len(value) == self.batch:
                return value[part]
            return map_members(value, cut)

        return self._changed(cut, gradient=self.gradient[part])

    def resized(self, ratio: float) -> RecordedCall:
        """The call at another resolution: every image-like tensor is resampled, the noise keeps its variance.

        Raises:
            SearchError: The model does not take images (N, C, H, W), so its inputs cannot be resampled.
        """
        if ratio == 1.0:
            return self
        if self.gradient.dim() != 4:
            raise SearchError(
                f"the denoiser's output has shape {tuple(self.gradient.shape)}, not (N, C, H, W): its calls cannot be "
                "replayed at another resolution. Search without resolutions, or use a fixed plan."
            )
        size = self.gradient.shape[2:]
        target = [max(1, round(side * ratio)) for side in size]

        def resample(x: Tensor) -> Tensor:
            if x.dim() != 4 or x.shape[2:] != size or not x.is_floating_point():
                return x
            # Nearest keeps every value's distribution: averaging would shrink the noise the timestep promises.
            return F.interpolate(x, size=target, mode="nearest-exact")

        return self._changed(partial(map_tensors, function=resample), gradient=resample(self.gradient))

    def differentiable(self) -> RecordedCall:
        """The call whose largest floating-point input requires gradient."""
        sizes = [x.numel() for x in tensors_in((self.args, self.kwargs)) if x.is_floating_point()]

        def require_gradient(x: Tensor) -> Tensor:
            if x.is_floating_point() and x.numel() == max(sizes):
                return _copy(x).requires_grad_()
            return x

        return self._changed(partial(map_tensors, function=require_gradient))

    def _changed(self, change: Callable[[Any], Any], **others: Any) -> RecordedCall:
        """The call with `change` applied to its positional and to its keyword inputs."""
        return replace(self, args=change(self.args), kwargs=change(self.kwargs), **others)


class CallRecorder:
    """Keeps the last calls that were followed by a backward pass.

    Args:
        model: The model that the training loop calls: the hook sits on the outermost wrapper, outside compiled code.
        keep: How many calls.
    """

    def __init__(self, model: nn.Module, keep: int) -> None:
        self._model = model
        self.calls: deque[RecordedCall] = deque(maxlen=keep)  # oldest first
        self._handle: Any = None

    def start(self) -> None:
        """Begin to keep calls; does nothing if that has begun."""
        if self._handle is None:
            self._handle = self._model.register_forward_hook(self._remember, with_kwargs=True)

    def stop(self) -> None:
        """Keep no more calls and forget those kept."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.calls.clear()

    def saved(self) -> list[Any]:
        """The calls as plain containers of tensors."""
        return [tuple(vars(call).values()) for call in self.calls]

    def restore(self, calls: Iterable[Any], device: torch.device) -> None:
        """Put back calls that `saved` gave, on `device`."""
        self.calls.clear()
        for values in map_tensors(list(calls), methodcaller("to", device)):
            self.calls.append(RecordedCall(*values))

    def _remember(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook of the model: copy the inputs, and keep the call once its output gradients have arrived."""
        value = output_value(output)
        listed = isinstance(value, list)
        outputs: list[Tensor] = value if listed else [value]
        if not torch.is_grad_enabled() or not all(output.requires_grad for output in outputs):
            return
        args, kwargs = map_tensors((args, kwargs), _copy)
        kind = outputs[0].device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

        def keep(gradients: Sequence[Any]) -> None:
            # A sample that the loss leaves out has no gradient: such a call cannot be replayed.
            if all(isinstance(gradient, Tensor) for gradient in gradients):
                first = gradients[0]
                gradient = torch.stack(tuple(gradients)) if listed else _copy(first)
                self.calls.append(RecordedCall(args, kwargs, gradient, listed, autocast))

        register_multi_grad_hook(outputs, keep)


def calls_from_loss(model: nn.Module, loss_fn: LossFunction, batches: Iterable[Any], count: int) -> list[RecordedCall]:
    """The calls that a user's own loss makes on `count` batches; the model is left without gradients.

    Raises:
        SearchError: The loss never calls the model.
    """
    recorder = CallRecorder(model, count)
    recorder.start()
    try:
        for batch in islice(batches, count):
            loss_fn(model, batch).backward()
        calls = list(recorder.calls)
    finally:
        recorder.stop()
        take_gradients(model)  # the calls are replayed: what the loss has added up would count twice
    if not calls:
        raise SearchError("loss_fn did not call the model it was given: use loss_fn(model, batch) -> loss.")
    return calls


def take_gradients(model: nn.Module) -> NamedTensors:
    """Remove the gradients from a model's parameters; returns those that are there, by name."""
    taken = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            taken[name] = parameter.grad
            parameter.grad = None
    return taken


def output_tensor(output: Any) -> Tensor:
    """The tensor (N, ...) that a denoiser returns; a list with one tensor per sample is stacked.

    Raises:
        SearchError: There is none, or the samples differ in shape.
    """
    value = output_value(output)
    if isinstance(value, Tensor):
        return value
    shapes = {tuple(sample.shape) for sample in value}
    if len(shapes) > 1:
        raise SearchError(f"the denoiser returned samples of shapes {sorted(shapes)}: a search needs one size.")
    return torch.stack(value)


def output_value(output: Any) -> Tensor | list[Tensor]:
    """The output proper: what was returned, the first of a tuple, or the first field of a model output; maybe a list.

    Raises:
        SearchError: There is no tensor in it.
    """
    value = output
    while not isinstance(value, Tensor):
        if isinstance(value, list) and value and all(isinstance(sample, Tensor) for sample in value):
            return value
        if isinstance(value, Mapping):
            value = next(iter(value.values()), None)
        elif is_dataclass(value):
            value = getattr(value, fields(value)[0].name)
        elif isinstance(value, (tuple, list)) and value:
            value = value[0]
        else:
            raise SearchError(f"the denoiser returned {type(value).__name__}, in which no tensor was found.")
    return value


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """`value` with `function` applied to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    return map_members(value, partial(map_tensors, function=function))


def map_members(value: Any, function: Callable[[Any], Any]) -> Any:
    """A tuple, list or dict with `function` applied to its members; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(function, value))
    if isinstance(value, list):
        return list(map(function, value))
    if isinstance(value, dict):
        return {key: function(member) for key, member in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    found = []
    map_tensors(value, found.append)
    return found


def _copy(tensor: Tensor) -> Tensor:
    """The values of a tensor, in memory of their own."""
    return tensor.detach().clone()
