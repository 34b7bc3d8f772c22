"""Slow, literal versions of every score, transcribed from the formulas. Tests and benchmarks compare with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from autoprog_diffusion.search.recorded_calls import RecordedCall


def literal_gram(model: nn.Module, call: RecordedCall, names: Iterable[str], samples: int | None = None) -> Tensor:
    """Per-sample gradients of the summed output over the named parameters, one retained backward each -> (N, N).

    `samples` limits it to the first ones, for timing.
    """
    wanted = dict(model.named_parameters())
    parameters = [wanted[name] for name in names]
    output = call.run(model)
    rows = []
    count = samples or call.batch
    for index in range(count):
        found = torch.autograd.grad(output[index].sum(), parameters, retain_graph=True, allow_unused=True)
        rows.append([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found)])
    gram = torch.zeros(count, count, dtype=torch.float64)
    for column in zip(*rows):
        gradients = torch.stack(column).double()
        gram += gradients @ gradients.T
    return gram


def literal_condition_number(gram: Tensor) -> float:
    """Largest over smallest eigenvalue."""
    values = torch.linalg.eigvalsh(gram.double())
    return float(values[-1] / values[0])


def literal_zico(model: nn.Module, calls: Sequence[RecordedCall], names: Iterable[str]) -> float:
    """sum_l log sum_i mean_b |g_i| / std_b(g_i), entries with std 0 and layers without any left out."""
    wanted = dict(model.named_parameters())
    total = 0.0
    for name in names:
        gradients = []
        for call in calls:
            output = call.run(model)
            gradients.append(torch.autograd.grad(output, wanted[name], call.gradient)[0].double())
        stacked = torch.stack(gradients)
        std = stacked.std(dim=0, unbiased=False)
        inner = (stacked.abs().mean(0) / std)[std > 0].sum()
        total += math.log(float(inner)) if inner > 0 else 0.0
    return total


def literal_rank_vote(times: Sequence[float], kappas: Sequence[float], zicos: Sequence[float]) -> int:
    """Index of the smallest 1.0 rank(time) + 0.5 rank(kappa) + 0.5 rank(ZiCo); ties to the faster one."""

    def ranks(values: Sequence[float]) -> list[int]:
        return [1 + sum(other < value - 1e-6 for other in values) for value in values]

    scores = zip(ranks(times), ranks(kappas), ranks([-value for value in zicos]))
    totals = [a + 0.5 * b + 0.5 * c for a, b, c in scores]
    return min(range(len(times)), key=lambda index: (totals[index], times[index]))
