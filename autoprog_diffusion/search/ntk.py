"""The NTK condition number of any subset of a model's units, from one probe (AutoProg-Zero)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.units import Layout, trainable_now

from .gram import GramFunction, Grams, find_gram, vector_gram
from .recorded_calls import RecordedCall


def parameter_grams(model: nn.Module, call: RecordedCall) -> Grams:
    """Gram matrix of the per-sample gradients of the summed output, for every parameter: name -> (N, N) float64.

    One forward and one backward pass give those of linear, convolution, normalisation and embedding layers. The rest
    (other layer types, tied parameters, activations that mix samples) takes one pass per sample.

    The kernel of AutoProg-Zero's score is the sum of these matrices over the parameters that train. Therefore one
    probe scores every subset. Run it in `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        call: N samples; its loss gradient is not used.
    """
    grams: Grams = {}
    # A tied parameter's gradient is a sum over modules, which no single one of them sees.
    owners = Counter(dict(model.named_parameters(remove_duplicate=False)).values())
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            gram = find_gram(module)
            own = list(module.parameters(recurse=False))
            trains = any(parameter.requires_grad for parameter in own)
            tied = any(owners[parameter] > 1 for parameter in own)
            if gram is not None and trains and not tied:
                watched = _Watched(name, gram, call.batch, grams)
                hooks.enter_context(module.register_forward_hook(watched.remember))
        output = call.run(model)
    # Without the hooks: gradient checkpointing runs modules again, and only the first runs count.
    output.sum().backward()
    model.zero_grad()
    rest = trainable_now(model) - grams.keys()
    return grams | _per_sample_grams(model, call, rest)


def unit_grams(layout: Layout, grams: Grams) -> Grams:
    """Sums over the weights of every unit: unit name -> (N, N), or a scalar zero for a unit without weights.

    Biases are left out, as in AutoProg-Zero's score.
    """
    weights = {name for name in grams if "weight" in name}
    return {unit.name: sum_grams(grams, filter(weights.__contains__, unit.parameters)) for unit in layout.units}


def sum_grams(grams: Grams, names: Iterable[str]) -> Tensor:
    """Sum of the Gram matrices called `names`, (N, N); a scalar zero of none."""
    return sum((grams[name] for name in names), start=torch.zeros(()))


def condition_number(gram: Tensor) -> float:
    """Largest over smallest eigenvalue of a (N, N) Gram matrix; inf where it is singular, nan where it holds a nan.

    A smallest eigenvalue below the rounding error of the largest is zero. In AutoProg-Zero's released code it may be
    negative, and then wins.
    """
    if gram.dim() != 2 or len(gram) < 2 or not gram.isfinite().all():
        return math.nan
    smallest, *_, largest = torch.linalg.eigvalsh(gram.double().cpu()).tolist()  # ascending
    rounding = len(gram) * torch.finfo(torch.float32).eps * largest
    return largest / smallest if smallest > rounding else math.inf


@dataclass
class _Watched:
    """One module in the probe: its activations, until they and the output gradients have become Gram matrices.

    Attributes:
        name: Name of the module.
        gram: Computes the matrices.
        batch: Number of samples, N.
        grams: Takes the matrices in: name of the parameter -> (N, N).
        runs: For every run of the module its first argument, (N, ...), and later the gradient of its output, (N, ...).
        separable: Whether the runs are per sample and can be joined; otherwise the slow way is left.
    """

    name: str
    gram: GramFunction
    batch: int
    grams: Grams
    runs: list[list[Tensor]] = field(default_factory=list)
    separable: bool = True

    def remember(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Forward hook of the module."""
        if not output.requires_grad:
            return
        inputs, *_ = args
        # Runs on images of different sizes have different windows.
        windows_differ = bool(self.runs) and isinstance(module, (nn.Conv2d, nn.GroupNorm))
        per_sample = len(inputs) == len(output) == self.batch
        if windows_differ or not per_sample:
            self.separable = False
        run = [inputs.detach()]
        self.runs.append(run)
        output.register_hook(partial(self.receive, module, run))

    def receive(self, module: nn.Module, run: list[Tensor], gradient: Tensor) -> None:
        """Hook on the output of a run: the last gradient that arrives completes the matrices."""
        run.append(gradient.detach())
        if not self.separable or min(map(len, self.runs)) < 2:
            return
        inputs, gradients = zip(*self.runs)
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            matrices = self.gram(module, _joined(inputs), _joined(gradients))
        for leaf, matrix in matrices.items():
            self.grams[f"{self.name}.{leaf}".removeprefix(".")] = matrix
        for done in self.runs:
            done.clear()  # frees the activations, which the hooks hold as well


def _joined(runs: Sequence[Tensor]) -> Tensor:
    """The runs' tokens side by side: a module that ran several times has the sum of the runs' gradients."""
    first, *more = runs
    if not more:
        return _precise(first)
    # Every index of an embedding is a token.
    width = first.shape[-1:] if first.is_floating_point() else ()
    return _precise(torch.cat([run.reshape(len(run), -1, *width) for run in runs], dim=1))


def _precise(x: Tensor) -> Tensor:
    """At least float32; indices stay integers."""
    if not x.is_floating_point():
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_sample_grams(model: nn.Module, call: RecordedCall, names: Collection[str]) -> Grams:
    """The slow way: the gradients of every sample, one forward and one backward pass each."""
    if not names:
        return {}
    parameters = list(map(model.get_parameter, names))
    samples = []
    for index in range(call.batch):
        output = call.sample(index).run(model)
        samples.append(torch.autograd.grad(output.sum(), parameters, materialize_grads=True))
    grams = {}
    for name, *gradients in zip(names, *samples):
        rows = torch.stack(gradients).reshape(call.batch, -1)  # (N, P)
        grams[name] = vector_gram(_precise(rows))
    return grams
