"""Real calls of the denoiser, kept while it trains: what went in, and the gradient the user's loss sent back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import SearchError


@dataclass(frozen=True)
class Call:
    """One call of a model on a mini-batch.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        gradient: Of the user's loss with respect to the output, same shape as the output (N, ...).
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradient: Tensor

    @property
    def batch(self) -> int:
        """Number of samples, N."""
        return len(self.gradient)

    def run(self, model: nn.Module) -> Tensor:
        """The model's output (N, ...) on these inputs."""
        return output_tensor(model(*self.args, **self.kwargs))

    def sample(self, index: int) -> Call:
        """The call with one sample only."""
        part = slice(index, index + 1)
        args, kwargs = self.mapped(lambda x: x[part] if x.dim() and len(x) == self.batch else x)
        return Call(args, kwargs, self.gradient[part])

    def first(self, count: int) -> Call:
        """The call with at most `count` samples."""
        if count >= self.batch:
            return self
        args, kwargs = self.mapped(lambda x: x[:count] if x.dim() and len(x) == self.batch else x)
        return Call(args, kwargs, self.gradient[:count])

    def resized(self, ratio: float) -> Call:
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
        return Call(args, kwargs, resample(self.gradient))

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
        self._calls: deque[Call] = deque(maxlen=keep)
        self._handle: Any = None

    @property
    def calls(self) -> list[Call]:
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

    def saved(self) -> list[tuple[Any, Any, Tensor]]:
        """The calls as plain containers of tensors."""
        return [(call.args, call.kwargs, call.gradient) for call in self._calls]

    def restore(self, calls: list[Any], device: torch.device) -> None:
        """Put back calls that `saved` gave, on `device`."""
        self._calls.clear()
        for values in calls:
            args, kwargs, gradient = map_tensors(tuple(values), lambda x: x.to(device))
            self._calls.append(Call(args, kwargs, gradient))

    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        result = output_tensor(output)
        if not (torch.is_grad_enabled() and result.requires_grad):
            return
        inputs = map_tensors(args, _copy), map_tensors(kwargs, _copy)
        result.register_hook(lambda gradient: self._calls.append(Call(inputs[0], inputs[1], _copy(gradient))))


def output_tensor(output: Any) -> Tensor:
    """The tensor a denoiser returns: itself, the first of a tuple, or the first field of a model output.

    Raises:
        SearchError: There is none.
    """
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            output = next(iter(output.values()), None)
        elif hasattr(output, "__dataclass_fields__"):
            output = getattr(output, next(iter(output.__dataclass_fields__)))
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
) -> list[Call]:
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
