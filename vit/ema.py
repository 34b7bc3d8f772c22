"""A moving average of a model's parameters that can grow with the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """theta_m <- m theta_m + (1 - m) theta, with m = min(decay, (1 + n) / (10 + n)) in step n.

    torch's `AveragedModel` does not fit: it copies the module, and where Accelerate has put autocast into
    `model.forward`, the copy's forward is still the original's, so that evaluating the average would silently evaluate
    the online weights. Swapping the averaged parameters in also lets a candidate run through the very same module
    that trains. Buffers are the model's own, as in `AveragedModel`.

    Args:
        model: The bare model, on its device.
        decay: Largest m, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = dict(model.named_parameters())
        self._decay = decay
        self.updates = 0
        self.values: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            self.values[name] = parameter.detach().clone()

    def update(self, everything: bool = False) -> None:
        """Average one more step of the trainable parameters.

        Args:
            everything: Also of frozen ones, whose average would otherwise stay behind the weights they froze at.
        """
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        for name, parameter in self._parameters.items():
            if everything or parameter.requires_grad:
                averages.append(self.values[name])
                weights.append(parameter.detach())
        get_ema_multi_avg_fn(decay)(averages, weights, self.updates)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model hold the averaged weights inside a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the model's weights by their average."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of the averages on the CPU, by name of the parameter."""
        return {name: value.cpu().clone() for name, value in self.values.items()}

    def load_state_dict(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Put back what `state_dict` gave.

        Args:
            values: Averages by name of the parameter, on any device.
            updates: Steps that were averaged so far.
        """
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            weights = parameter.data
            parameter.data = self.values[name]
            self.values[name] = weights
