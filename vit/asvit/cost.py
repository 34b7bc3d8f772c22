"""Size and cost of a network from its genotype alone; scaling asks for thousands."""

from __future__ import annotations

import math

from .genotype import STAGES, Genotype


def parameter_count(genotype: Genotype, num_classes: int, in_channels: int = 3) -> int:
    """Parameters of the network, head included."""
    widths, kernels = genotype.widths, genotype.kernels
    total = widths[0] * (in_channels * kernels[0] ** 2 + 1) + 2 * widths[0]  # projection, norm
    for before, after, kernel in zip(widths, widths[1:], kernels[1:]):
        total += kernel**2 * before * (after + 2)  # merging without bias, norm
    for width, expansion, depth in zip(widths, genotype.expansions, genotype.depths):
        attention, mlp = 4 * width * (width + 1), 2 * expansion * width**2 + (expansion + 1) * width
        total += depth * (attention + mlp + 4 * width)
    return total + 2 * widths[-1] + widths[-1] * (widths[-1] + 1) + num_classes * (widths[-1] + 1)


def multiply_adds(genotype: Genotype, image_size: int, num_classes: int, in_channels: int = 3) -> int:
    """Multiply-adds of matrix products for one image: what papers call FLOPs, half of what torch counts."""
    widths, grids, kernels = genotype.widths, genotype.grids(image_size), genotype.kernels
    total = grids[0] ** 2 * widths[0] * in_channels * kernels[0] ** 2
    for stage in range(1, STAGES):
        total += grids[stage] ** 2 * kernels[stage] ** 2 * widths[stage - 1] * widths[stage]
    shape = zip(widths, grids, genotype.splits, genotype.expansions, genotype.depths)
    for width, side, splits, expansion, depth in shape:
        window = (side // math.gcd(side, splits)) ** 2
        total += depth * side**2 * width * (4 * width + 2 * expansion * width + 2 * window)
    return total + widths[-1] ** 2 + widths[-1] * num_classes
