"""Size and cost of a network from its genotype alone; scaling asks for thousands."""

from __future__ import annotations

import math

from .genotype import Genotype


CHANNELS = 3  # of an image


def parameter_count(genotype: Genotype, num_classes: int) -> int:
    """Parameters of the network, head included.

    Args:
        genotype: The network.
        num_classes: Outputs of the head.
    """
    widths, kernels = genotype.widths, genotype.kernels
    pixels = CHANNELS * kernels[0] ** 2
    bias_and_norm = 3  # numbers a channel: a bias, and the weight and bias of the norm
    total = widths[0] * (pixels + bias_and_norm)
    for width, next_width, kernel in zip(widths, widths[1:], kernels[1:]):
        merged = kernel**2 * width
        norm = 2 * merged
        total += norm + merged * next_width  # the linear map has no bias
    for width, expansion, depth in zip(widths, genotype.expansions, genotype.depths):
        # Vectors, in widths: biases of query, key, value and output, and weight and bias of two norms.
        attention_biases, norms = 4, 4
        mlp_biases = expansion + 1
        vectors = width * (attention_biases + mlp_biases + norms)
        total += depth * (_block_matrices(width, expansion) + vectors)
    last = widths[-1]
    norm = 2 * last
    head = (last + 1) * (last + num_classes)  # two linear maps with bias
    return total + norm + head


def multiply_adds(genotype: Genotype, image_size: int, num_classes: int) -> int:
    """Multiply-adds of matrix products for one image: the "FLOPs" of papers, half of the count of torch.

    Args:
        genotype: The network.
        image_size: Side of the image, in pixels.
        num_classes: Outputs of the head.
    """
    widths, kernels = genotype.widths, genotype.kernels
    grids = genotype.grids(image_size)
    total = grids[0] ** 2 * widths[0] * CHANNELS * kernels[0] ** 2
    for side, width, next_width, kernel in zip(grids[1:], widths, widths[1:], kernels[1:]):
        merged = kernel**2 * width
        total += side**2 * merged * next_width
    for stage, width in enumerate(widths):
        side = grids[stage]
        # Grids that cannot be cut into so many windows are cut into fewer (see `WindowAttention`).
        windows = math.gcd(side, genotype.splits[stage])
        attended = (side // windows) ** 2  # tokens that one token attends to, itself included
        attention = 2 * attended * width  # queries times keys, and their weights times values
        per_token = _block_matrices(width, genotype.expansions[stage]) + attention
        total += genotype.depths[stage] * side**2 * per_token
    last = widths[-1]
    head = last * (last + num_classes)
    return total + head


def _block_matrices(width: int, expansion: int) -> int:
    """Weights of a block's matrices: four of attention (width x width), two of the MLP (width x hidden)."""
    attention = 4 * width**2
    hidden = expansion * width
    return attention + 2 * width * hidden
