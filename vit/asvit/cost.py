"""Size and cost of a network from its genotype alone; scaling asks for thousands."""

from __future__ import annotations

import math

from .genotype import STAGES, Genotype


def parameter_count(genotype: Genotype, num_classes: int, in_channels: int = 3) -> int:
    """Parameters of the network, head included."""
    widths, kernels = genotype.widths, genotype.kernels
    projection = widths[0] * (in_channels * kernels[0] ** 2 + 1)
    norm = 2 * widths[0]
    total = projection + norm
    for before, after, kernel in zip(widths, widths[1:], kernels[1:]):
        merged = kernel**2 * before
        total += merged * after + 2 * merged  # linear map without bias, norm
    for width, expansion, depth in zip(widths, genotype.expansions, genotype.depths):
        attention = 4 * width * (width + 1)
        hidden = expansion * width
        mlp = 2 * hidden * width + hidden + width
        norms = 4 * width
        total += depth * (attention + mlp + norms)
    last = widths[-1]
    head = last * (last + 1) + num_classes * (last + 1)
    return total + 2 * last + head


def multiply_adds(genotype: Genotype, image_size: int, num_classes: int, in_channels: int = 3) -> int:
    """Multiply-adds of matrix products for one image: the "FLOPs" of papers, half of the count of torch."""
    widths, kernels = genotype.widths, genotype.kernels
    grids = genotype.grids(image_size)
    total = grids[0] ** 2 * widths[0] * in_channels * kernels[0] ** 2
    for stage in range(1, STAGES):
        merged = kernels[stage] ** 2 * widths[stage - 1]
        total += grids[stage] ** 2 * merged * widths[stage]
    shapes = zip(widths, grids, genotype.splits, genotype.expansions, genotype.depths)
    for width, side, splits, expansion, depth in shapes:
        window = (side // math.gcd(side, splits)) ** 2  # tokens that one token attends to
        projections = 4 * width
        attention = 2 * window
        mlp = 2 * expansion * width
        total += depth * side**2 * width * (projections + mlp + attention)
    last = widths[-1]
    return total + last**2 + last * num_classes
