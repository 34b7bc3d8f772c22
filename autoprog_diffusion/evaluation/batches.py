"""Batches of any loop: how many samples they hold, one of them, and the same on another device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import EvaluationError


def batch_size(batch: Any) -> int:
    """Number of samples of a batch: the length of the first tensor in it.

    Args:
        batch: A tensor, or nested dictionaries, lists and tuples of some.

    Raises:
        EvaluationError: It holds no tensor with a first axis.
    """
    for tensor in _tensors(batch):
        if tensor.dim() > 0:
            return len(tensor)
    raise EvaluationError(
        f"a held-out batch of type {type(batch).__name__} holds no tensor with a first axis, so its samples cannot be "
        "counted: give tensors, or dictionaries, lists and tuples of tensors."
    )


def one_sample(batch: Any, index: int) -> Any:
    """The batch with one sample only: of every tensor and list that has one entry a sample.

    Args:
        batch: As `batch_size` takes it.
        index: Which sample.
    """
    count = batch_size(batch)

    def cut(value: Any) -> Any:
        is_list = isinstance(value, (list, tuple)) and not any(isinstance(item, Tensor) for item in value)
        if (is_list or (isinstance(value, Tensor) and value.dim() > 0)) and len(value) == count:
            return value[index : index + 1]
        return _members(value, cut)

    return cut(batch)


def on(batch: Any, device: torch.device) -> Any:
    """The batch with all of its tensors on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return _members(value, move)

    return move(batch)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _tensors(member)


def _members(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container with its members changed; anything else as it is."""
    if isinstance(value, Mapping):
        return {key: change(member) for key, member in value.items()}
    if isinstance(value, tuple):
        return tuple(change(member) for member in value)
    if isinstance(value, list):
        return [change(member) for member in value]
    return value
