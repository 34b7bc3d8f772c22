"""Real calls of the denoiser, kept while it trains: what went in, and the gradient the user's loss sent back."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import SearchError


@dataclass(frozen=True)
class RecordedCall:
    """One call of a model on a mini-batch.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        gradient: Of the user's loss with respect to the output, same shape as the output (N, ...).
        listed: Whether the model takes and returns lists with one tensor per sample (Z-Image).
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradient: Tensor
    listed: bool = False

    @property
    def batch(self) -> int:
        """Number of samples, N."""
        return len(self.gradient)

    def run(self, model: nn.Module) -> Tensor:
        """The model's output (N, ...) on these inputs."""
        return output_tensor(model(*self.args, **self.kwargs))

    def sample(self, index: int) -> RecordedCall:
        """The call with one sample only."""
        return self._part(slice(index, index + 1))

    def first(self, count: int) -> RecordedCall:
        """The call with at most `count` samples."""
        return self if count >= self.batch else self._part(slice(0, count))

    def _part(self, part: slice) -> RecordedCall:
        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[part] if value.dim() and len(value) == self.batch else value
            if self.listed and isinstance(value, list) and len(value) == self.batch:
                return value[part]
            if isinstance(value, dict):
                return {key: cut(inner) for key, inner in value.items()}
            return type(value)(cut(inner) for inner in value) if type(value) in (tuple, list) else value

        return replace(self, args=cut(self.args), kwargs=cut(self.kwargs), gradient=self.gradient[part])

    def resized(self, ratio: float) -> RecordedCall:
        """The call at another resolution: every image-like tensor resampled, the noise's variance kept.

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
        size = tuple(self.gradient.shape[2:])
        target = tuple(max(1, round(side * ratio)) for side in size)

        def resample(x: Tensor) -> Tensor:
            if x.dim() != 4 or tuple(x.shape[2:]) != size or not x.is_floating_point():
                return x
            # Nearest keeps every value's distribution: averaging would shrink the noise the timestep promises.
            return F.interpolate(x, size=target, mode="nearest-exact")

        args, kwargs = self.mapped(resample)
        return replace(self, args=args, kwargs=kwargs, gradient=resample(self.gradient))

    def differentiable(self) -> RecordedCall:
        """The call with the gradient of its largest floating-point input asked for."""
        sizes: list[int] = []
        self.mapped(lambda x: (sizes.append(x.numel() * x.is_floating_point()), x)[1])

        def ask(x: Tensor) -> Tensor:
            largest = x.is_floating_point() and x.numel() == max(sizes)
            return x.detach().clone().requires_grad_() if largest else x

        args, kwargs = self.mapped(ask)
        return replace(self, args=args, kwargs=kwargs)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs with `function` applied to every tensor in them."""
        return tuple(map_tensors(value, function) for value in self.args), map_tensors(self.kwargs, function)


class CallRecorder:
    """Keeps the last calls that were followed by a backward pass.

    Args:
        model: What the training loop calls: hooks sit on the outermost wrapper, outside compiled code.
        keep: How many calls.
    """

    def __init__(self, model: nn.Module, keep: int) -> None:
        self._model = model
        self._calls: deque[RecordedCall] = deque(maxlen=keep)
        self._handle: Any = None

    @property
    def calls(self) -> list[RecordedCall]:
        """The calls kept, oldest first."""
        return list(self._calls)

    def start(self) -> None:
        """Begin to keep calls; does nothing where that has begun."""
        if self._handle is None:
            self._handle = self._model.register_forward_hook(self._remember, with_kwargs=True)

    def stop(self) -> None:
        """Keep no more calls and forget those kept."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._calls.clear()

    def saved(self) -> list[tuple[Any, ...]]:
        """The calls as plain containers of tensors."""
        return [(call.args, call.kwargs, call.gradient, call.listed) for call in self._calls]

    def restore(self, calls: list[Any], device: torch.device) -> None:
        """Put back calls that `saved` gave, on `device`."""
        self._calls.clear()
        for values in calls:
            self._calls.append(RecordedCall(*map_tensors(tuple(values), lambda x: x.to(device))))

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found = output_value(output)
        parts: list[Any] = found if isinstance(found, list) else [found]
        if not (torch.is_grad_enabled() and all(part.requires_grad for part in parts)):
            return
        inputs = map_tensors(args, _copy), map_tensors(kwargs, _copy)
        arrived: dict[int, Tensor] = {}

        def keep(gradient: Tensor, index: int) -> None:
            arrived[index] = _copy(gradient)
            if len(arrived) == len(parts):
                listed = isinstance(found, list)
                whole = torch.stack([arrived[i] for i in range(len(parts))]) if listed else arrived[0]
                self._calls.append(RecordedCall(*inputs, whole, listed))

        for index, part in enumerate(parts):
            part.register_hook(functools.partial(keep, index=index))


def output_tensor(output: Any) -> Tensor:
    """The tensor (N, ...) a denoiser returns; a list with one tensor per sample is stacked.

    Raises:
        SearchError: There is none, or the samples differ in shape.
    """
    found = output_value(output)
    if isinstance(found, Tensor):
        return found
    shapes = {tuple(part.shape) for part in found}
    if len(shapes) > 1:
        raise SearchError(f"the denoiser returned samples of shapes {sorted(shapes)}: a search needs one size.")
    return torch.stack(found)


def output_value(output: Any) -> Tensor | list[Tensor]:
    """What a denoiser returns: itself, the first of a tuple, or the first field of a model output; maybe a list.

    Raises:
        SearchError: There is no tensor in it.
    """
    while not isinstance(output, Tensor):
        if isinstance(output, list) and output and all(isinstance(part, Tensor) for part in output):
            return output
        if isinstance(output, Mapping):
            output = next(iter(output.values()), None)
        elif hasattr(output, "__dataclass_fields__"):
            output = getattr(output, next(iter(vars(type(output))["__dataclass_fields__"])))
        elif isinstance(output, (tuple, list)) and output:
            output = output[0]
        else:
            raise SearchError(f"the denoiser returned {type(output).__name__}, in which no tensor was found.")
    return output


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` applied to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(part, function) for part in value)
    if isinstance(value, list):
        return [map_tensors(part, function) for part in value]
    if isinstance(value, dict):
        return {key: map_tensors(part, function) for key, part in value.items()}
    return value


def calls_from_loss(
    model: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor], batches: Iterable[Any], count: int
) -> list[RecordedCall]:
    """The calls that a user's own loss makes on `count` batches.

    Raises:
        SearchError: The loss never calls the model.
    """
    recorder = CallRecorder(model, count)
    recorder.start()
    try:
        for _, batch in zip(range(count), batches):
            loss_fn(model, batch).backward()
        calls = recorder.calls
    finally:
        recorder.stop()
    if not calls:
        raise SearchError("loss_fn did not call the model it was given: use loss_fn(model, batch) -> loss.")
    return calls


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
