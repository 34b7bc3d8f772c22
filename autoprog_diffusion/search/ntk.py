"""The NTK condition number of any subset of a model's units, from one probe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.units import Layout

from .gram import Grams, kernel_for, vector_gram
from .recorded_calls import RecordedCall


def parameter_grams(model: nn.Module, call: RecordedCall) -> dict[str, Tensor]:
    """Gram matrix of the per-sample gradients of the summed output, for every parameter: name -> (N, N) float64.

    One forward and one backward pass give those of linear, convolution, normalisation and embedding layers; what is
    left (other layer types, tied parameters, activations that mix samples) takes one pass per sample.

    Source: AutoProg-Zero's NTK score; that the matrices add up over parameters is what lets one probe score every
    subset. Run it inside `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        call: N samples; its loss gradient is not used.
    """
    collector = _Collector(model, call.batch)
    try:
        collector.watch()
        output = call.run(model)
        collector.forward_done = True
        output.sum().backward()
    finally:
        collector.close()
    grams = collector.grams
    rest = [(n, p) for n, p in model.named_parameters() if p.requires_grad and n not in grams]
    if rest:
        grams |= _per_sample_grams(model, call, rest)
    for parameter in model.parameters():
        parameter.grad = None
    return grams


def unit_grams(layout: Layout, grams: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the weights of every unit: unit name -> (N, N). Biases are left out, as in the paper's score."""
    sums = {}
    for unit in layout.units:
        parts = [grams[name] for name in unit.parameters if "weight" in name and name in grams]
        sums[unit.name] = torch.stack(parts).sum(0) if parts else torch.zeros(())
    return sums


def condition_number(gram: Tensor) -> float:
    """Largest over smallest eigenvalue of a (N, N) Gram matrix; inf where it is singular, nan where it holds a nan.

    A smallest eigenvalue below the rounding error of the largest is zero (the released code lets a negative one win).
    """
    if not bool(torch.isfinite(gram).all()) or gram.dim() != 2 or len(gram) < 2:
        return math.nan
    values = torch.linalg.eigvalsh(gram.double().cpu())
    floor = len(gram) * torch.finfo(torch.float32).eps * float(values[-1])
    return float(values[-1] / values[0]) if float(values[0]) > floor else math.inf


class _Collector:
    """Hooks that turn activations and output gradients into Gram matrices as the backward pass goes."""

    def __init__(self, model: nn.Module, batch: int) -> None:
        self._model, self._batch = model, batch
        self.grams: dict[str, Tensor] = {}
        self.forward_done = False
        self._handles: list[Any] = []
        self._pending: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
        self._spoiled: set[str] = set()

    def watch(self) -> None:
        owners: dict[int, int] = {}
        for _, parameter in self._model.named_parameters(remove_duplicate=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        for name, module in self._model.named_modules():
            own = list(module.parameters(recurse=False))
            trains = any(parameter.requires_grad for parameter in own)
            if trains and kernel_for(module) and all(owners[id(p)] == 1 for p in own):
                self._handles.append(module.register_forward_hook(self._hook(name)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._pending.clear()

    def _hook(self, name: str) -> Any:
        def remember(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            # Gradient checkpointing runs modules again in the backward pass; the first graph is the one that counts.
            if self.forward_done or not output.requires_grad:
                return
            calls = self._pending.setdefault(name, [])
            position = len(calls)
            calls.append((args[0].detach(), None))
            # Mixed samples, or windows of different shapes: left to the pass per sample.
            mixed = len(args[0]) != self._batch or len(output) != self._batch
            if mixed or (position and isinstance(module, (nn.Conv2d, nn.GroupNorm))):
                self._spoiled.add(name)
            output.register_hook(lambda gradient: self._arrived(module, name, position, gradient.detach()))

        return remember

    def _arrived(self, module: nn.Module, name: str, position: int, gradient: Tensor) -> None:
        calls = self._pending[name]
        calls[position] = (calls[position][0], gradient)
        if name in self._spoiled or any(found is None for _, found in calls):
            return
        for leaf, gram in _module_grams(module, calls).items():
            self.grams[f"{name}.{leaf}" if name else leaf] = gram
        del self._pending[name]


def _module_grams(module: nn.Module, calls: list[tuple[Tensor, Any]]) -> Grams:
    """Gram matrices of one module's parameters; a module that ran several times has the sum of its gradients."""
    kernel = kernel_for(module)
    assert kernel is not None
    inputs, gradients = (_joined([pair[k] for pair in calls]) for k in (0, 1))
    with torch.no_grad(), torch.autocast(gradients.device.type, enabled=False):
        precise = torch.promote_types(gradients.dtype, torch.float32)
        inputs = inputs.to(precise) if inputs.is_floating_point() else inputs
        return kernel(module, inputs, gradients.to(precise))


def _joined(tensors: list[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    if not tensors[0].is_floating_point():  # indices of an embedding: every one is a token
        return torch.cat([tensor.reshape(len(tensor), -1) for tensor in tensors], dim=1)
    width = tensors[0].shape[-1]
    return torch.cat([tensor.reshape(len(tensor), -1, width) for tensor in tensors], dim=1)


def _per_sample_grams(
    model: nn.Module, call: RecordedCall, rest: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    names, parameters = zip(*rest)
    rows: list[list[Tensor]] = []
    for index in range(call.batch):
        output = call.sample(index).run(model).sum()
        found = torch.autograd.grad(output, parameters, allow_unused=True)
        rows.append([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])
    stacked = {name: torch.stack(column) for name, column in zip(names, zip(*rows))}
    return {name: vector_gram(x.to(torch.promote_types(x.dtype, torch.float32))) for name, x in stacked.items()}
