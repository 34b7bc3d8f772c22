"""Size and cost of a network from its genotype alone; scaling asks for thousands."""

from __future__ import annotations

import math

from .genotype import Genotype


CHANNELS = 3  # of an image


def parameter_count(genotype: Genotype, num_classes: int) -> int:
    """Parameters of the network, head included."""
    widths, kernels = genotype.widths, genotype.kernels
    total = widths[0] * (CHANNELS * kernels[0] ** 2 + 3)  # with bias and norm
    for before, after, kernel in zip(widths, widths[1:], kernels[1:]):
        total += kernel**2 * before * (after + 2)  # linear map without bias, norm
    for width, expansion, depth in zip(widths, genotype.expansions, genotype.depths):
        # Biases: 4 of attention, one of each side of the MLP; weight and bias of two norms.
        vectors = 4 + (expansion + 1) + 4
        total += depth * width * (_block_matrices(width, expansion) + vectors)
    last = widths[-1]
    norm = 2 * last
    return total + norm + (last + 1) * (last + num_classes)


def multiply_adds(genotype: Genotype, image_size: int, num_classes: int) -> int:
    """Multiply-adds of matrix products for one image: the "FLOPs" of papers, half of the count of torch."""
    widths, kernels = genotype.widths, genotype.kernels
    tokens = [side**2 for side in genotype.grids(image_size)]
    total = tokens[0] * widths[0] * CHANNELS * kernels[0] ** 2
    for count, before, after, kernel in zip(tokens[1:], widths, widths[1:], kernels[1:]):
        total += count * kernel**2 * before * after
    shapes = zip(widths, tokens, genotype.splits, genotype.expansions, genotype.depths)
    for width, count, splits, expansion, depth in shapes:
        window = count // math.gcd(math.isqrt(count), splits) ** 2  # tokens that one token attends to
        total += depth * count * width * (_block_matrices(width, expansion) + 2 * window)
    last = widths[-1]
    return total + last * (last + num_classes)


def _block_matrices(width: int, expansion: int) -> int:
    """Weights of a block's matrices over its width: four of attention, two of the MLP."""
    return (4 + 2 * expansion) * width
