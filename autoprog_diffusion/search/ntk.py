"""The NTK condition number of any subset of a model's units, from one probe (AutoProg-Zero)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.units import Layout

from .gram import GramFunction, as_tokens, find_gram, vector_gram
from .recorded_calls import RecordedCall


def parameter_grams(model: nn.Module, call: RecordedCall) -> dict[str, Tensor]:
    """Gram matrix of the per-sample gradients of the summed output, for every parameter: name -> (N, N) float64.

    One forward and one backward pass give those of linear, convolution, normalisation and embedding layers. The rest
    (other layer types, tied parameters, activations that mix samples) takes one pass per sample.

    The kernel of AutoProg-Zero's score is the sum of these matrices over the parameters that train. Therefore one
    probe scores every subset. Run it in `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        call: N samples; its loss gradient is not used.
    """
    collector = _Collector(model, call.batch)
    try:
        output = call.run(model)
        collector.stop_watching()
        output.sum().backward()
    finally:
        collector.stop_watching()
    grams = collector.grams
    rest = {}
    for name, parameter in model.named_parameters():
        parameter.grad = None
        if parameter.requires_grad and name not in grams:
            rest[name] = parameter
    return {**grams, **_per_sample_grams(model, call, rest)}


def unit_grams(layout: Layout, grams: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the weights of every unit: unit name -> (N, N), or a scalar zero for a unit without weights.

    Biases are left out, as in AutoProg-Zero's score.
    """
    sums = {}
    for unit in layout.units:
        weights = [name for name in unit.parameters if "weight" in name and name in grams]
        sums[unit.name] = sum((grams[name] for name in weights), start=torch.zeros(()))
    return sums


def condition_number(gram: Tensor) -> float:
    """Largest over smallest eigenvalue of a (N, N) Gram matrix; inf where it is singular, nan where it holds a nan.

    A smallest eigenvalue below the rounding error of the largest is zero. In AutoProg-Zero's released code it may be
    negative, and then wins.
    """
    if gram.dim() != 2 or len(gram) < 2 or not gram.isfinite().all():
        return math.nan
    eigenvalues = torch.linalg.eigvalsh(gram.double().cpu()).tolist()  # ascending
    smallest = eigenvalues[0]
    largest = eigenvalues[-1]
    rounding = len(gram) * torch.finfo(torch.float32).eps * largest
    return largest / smallest if smallest > rounding else math.inf


@dataclass
class _Runs:
    """The runs of one module in a forward pass, and the gradients that have come back to them.

    Attributes:
        inputs: First argument of every run, (N, ...).
        gradients: Number of the run -> gradient of its output, (N, ...).
        separable: Whether the runs are per sample and can be joined.
    """

    inputs: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    separable: bool = True


class _Collector:
    """Hooks that turn activations and output gradients into Gram matrices as the backward pass goes.

    Args:
        model: The bare model.
        batch: Number of samples, N.
    """

    def __init__(self, model: nn.Module, batch: int) -> None:
        self.grams: dict[str, Tensor] = {}
        self._batch = batch
        self._runs: dict[str, _Runs] = {}
        self._handles: list[Any] = []
        # A tied parameter's gradient is a sum over modules, which no single one of them sees.
        owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        for name, module in model.named_modules():
            own = list(module.parameters(recurse=False))
            gram = find_gram(module)
            trains = any(parameter.requires_grad for parameter in own)
            if trains and gram is not None and all(owners[id(parameter)] == 1 for parameter in own):
                self._handles.append(module.register_forward_hook(partial(self._remember, name, gram)))

    def stop_watching(self) -> None:
        """Remove the hooks; gradients of runs seen until now are still collected.

        Gradient checkpointing runs modules again in the backward pass; only the first runs count.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _remember(self, name: str, gram: GramFunction, module: nn.Module, args: Any, output: Tensor) -> None:
        if not output.requires_grad:
            return
        inputs = args[0].detach()
        runs = self._runs.setdefault(name, _Runs())
        number = len(runs.inputs)
        runs.inputs.append(inputs)
        mixes_samples = len(inputs) != self._batch or len(output) != self._batch
        windows_differ = number > 0 and isinstance(module, (nn.Conv2d, nn.GroupNorm))
        if mixes_samples or windows_differ:
            runs.separable = False
        output.register_hook(partial(self._receive, name, partial(gram, module), number))

    def _receive(self, name: str, gram: Callable[..., dict[str, Tensor]], number: int, gradient: Tensor) -> None:
        runs = self._runs[name]
        runs.gradients[number] = gradient.detach()
        if not runs.separable or len(runs.gradients) < len(runs.inputs):
            return
        gradients = _joined([runs.gradients[number] for number in range(len(runs.inputs))])
        with torch.no_grad(), torch.autocast(gradients.device.type, enabled=False):
            found = gram(_precise(_joined(runs.inputs)), _precise(gradients))
        for leaf, matrix in found.items():
            self.grams[f"{name}.{leaf}" if name else leaf] = matrix
        del self._runs[name]  # frees the activations


def _joined(runs: list[Tensor]) -> Tensor:
    """A module that ran several times has the sum of the gradients: the runs' tokens stand side by side."""
    if len(runs) == 1:
        return runs[0]
    if not runs[0].is_floating_point():  # indices of an embedding: every one is a token
        return torch.cat([run.reshape(len(run), -1) for run in runs], dim=1)
    return torch.cat([as_tokens(run) for run in runs], dim=1)


def _precise(x: Tensor) -> Tensor:
    """At least float32; indices stay integers."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def _per_sample_grams(model: nn.Module, call: RecordedCall, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The slow way: the gradients of every sample, one forward and one backward pass each."""
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for index in range(call.batch if parameters else 0):
        output = call.sample(index).run(model)
        gradients = torch.autograd.grad(output.sum(), list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(parameters, gradients):
            rows[name].append(gradient.flatten())
    return {name: vector_gram(_precise(torch.stack(vectors))) for name, vectors in rows.items()}
