"""Slow, literal versions of the curve scores: one backward pass per channel. For tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoprog_diffusion.vit.asvit.length_distortion import on_circle


Run = Callable[[Tensor], Tensor]  # images (n, ...) -> features (n, C)


def literal_velocity(run: Run, plane: Tensor, theta: Tensor, chunk: int = 6, channels: int | None = None) -> Tensor:
    """df/dtheta (n, C) as the released code has it: chunks of points, one retained backward per output channel.

    `channels` limits it to the first ones, for timing.
    """
    rows = []
    for part in theta.split(chunk):
        part = part.detach().requires_grad_(True)
        output = run(on_circle(plane, part))
        width = output.shape[1] if channels is None else channels
        columns = [torch.autograd.grad(output[:, c].sum(), part, retain_graph=True)[0] for c in range(width)]
        rows.append(torch.stack(columns, dim=1))
    return torch.cat(rows)


@sdpa_kernel(SDPBackend.MATH)  # the only one that can be differentiated twice
def literal_derivatives(
    run: Run, plane: Tensor, theta: Tensor, chunk: int = 6, channels: int | None = None
) -> tuple[Tensor, Tensor]:
    """First and second derivative (n, C), two backwards per channel, the second through the graph of the first."""
    firsts, seconds = [], []
    for part in theta.split(chunk):
        part = part.detach().requires_grad_(True)
        output = run(on_circle(plane, part))
        width = output.shape[1] if channels is None else channels
        v, a = [], []
        for c in range(width):
            first = torch.autograd.grad(output[:, c].sum(), part, create_graph=True)[0]
            a.append(torch.autograd.grad(first.sum(), part, retain_graph=True)[0])
            v.append(first.detach())
        firsts.append(torch.stack(v, dim=1))
        seconds.append(torch.stack(a, dim=1))
    return torch.cat(firsts), torch.cat(seconds)


def literal_length(v: Tensor) -> float:
    """sum_j sqrt(v_j . v_j)."""
    return float(torch.einsum("nd,nd->n", v, v).sqrt().sum())


def literal_curvature(v: Tensor, a: Tensor) -> float:
    """sum_j (v.v)^(-3/2) sqrt((v.v)(a.a) - (v.a)^2)."""
    vv, aa, va = (torch.einsum("nd,nd->n", x, y) for x, y in ((v, v), (a, a), (v, a)))
    return float((vv**-1.5 * (vv * aa - va**2).sqrt()).sum())


@sdpa_kernel(SDPBackend.MATH)
def literal_gauss_length(run: Run, plane: Tensor, theta: Tensor) -> float:
    """sum_j |d/dtheta (v_j / |v_j|)| by differentiating the normalised vector itself, one channel at a time.

    The released code detaches |v_j|, which leaves |a_j| / |v_j| instead.
    """
    theta = theta.detach().requires_grad_(True)
    output = run(on_circle(plane, theta))
    columns = [torch.autograd.grad(column.sum(), theta, create_graph=True)[0] for column in output.unbind(1)]
    v = torch.stack(columns, dim=1)
    unit = v / v.norm(dim=1, keepdim=True)
    turns = [torch.autograd.grad(column.sum(), theta, retain_graph=True)[0] for column in unit.unbind(1)]
    return float(torch.stack(turns, dim=1).norm(dim=1).sum())


def difference_derivatives(run: Run, plane: Tensor, theta: Tensor, step: float = 1e-3) -> tuple[Tensor, Tensor]:
    """First and second derivative by central differences; meaningful in float64."""
    with torch.no_grad():
        ahead, here, behind = (run(on_circle(plane, theta + shift)) for shift in (step, 0.0, -step))
    return (ahead - behind) / (2 * step), (ahead - 2 * here + behind) / step**2
