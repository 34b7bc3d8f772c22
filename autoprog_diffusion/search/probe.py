"""Probing a model in the middle of its training without leaving a trace."""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def leaving_no_trace(model: nn.Module, *others: nn.Module, names: Container[str] | None = None) -> Iterator[None]:
    """Let the block do forward and backward passes with every growing parameter trainable, then put everything back.

    Restored also after an error: gradients (the same tensors, not recomputed), `requires_grad`, training modes and the
    random states of all devices. Inside, modules are in evaluation mode, so that dropout adds no noise to a score.
    Optimizers and averages are never touched, and hooks belong to whoever adds them in the block.

    Args:
        model: The bare model.
        others: Further modules whose parameters take part, such as the stage embedding.
        names: The model's parameters that may ever train; `None` for all of them.
    """
    modules = (model, *others)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            for parameter in parameters:
                parameter.grad = None
            for module in modules:
                module.eval()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.is_floating_point() and (names is None or name in names))
            yield
    finally:
        for parameter, flag, gradient in flags:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        for part, mode in modes:
            part.training = mode
