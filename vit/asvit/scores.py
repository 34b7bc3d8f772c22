"""The training-free scores of a genotype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .features import feature_condition_numbers, initial_states
from .genotype import Genotype
from .length_distortion import CurveScore, curve_scores
from .model import AsViT


REPEATS = 5  # initialisations, as published
NTK_BATCH = 16


@dataclass(frozen=True)
class Scores:
    """Means over initialisations; nan where not asked for.

    Attributes:
        ntk: Condition number of the NTK; lower is more trainable. inf where any initialisation has a singular kernel.
        length_distortion: L_E; higher is more expressive.
        curvature: Extrinsic curvature of the curve of features.
        gauss_length: Length of the curve's Gauss map.
        degenerate: A score is not finite, or the features do not move at all: such a network must never win.
    """

    ntk: float
    length_distortion: float
    curvature: float = math.nan
    gauss_length: float = math.nan
    degenerate: bool = False


def topology_scores(
    genotype: Genotype,
    *,
    image_size: int = 224,
    images: Tensor | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
    second_order: bool = False,
    device: torch.device | str = "cpu",
) -> Scores:
    """Score a network without training it; NTK and curves see the same initialisations.

    Deterministic in its arguments, so all ranks that call it get the same numbers.

    Args:
        genotype: The network; its depths and width count.
        image_size: Side of the images, in pixels.
        images: One batch for the NTK, (N, 3, image_size, image_size), normalised as for training; N = 16 in the paper.
            None: normal noise.
        repeats: Initialisations (and circles).
        seed: Of initialisations, circles and noise.
        second_order: Also curvature and Gauss-map length.
        device: Where to compute.

    Raises:
        GenotypeError: The network does not exist at this image size.
    """
    shape = (3, image_size, image_size)
    with torch.random.fork_rng():
        # Drawn on the CPU, so that every device scores the same networks.
        torch.manual_seed(seed)
        model = AsViT(genotype, num_classes=1, image_size=image_size)
        batch = torch.randn(NTK_BATCH, *shape) if images is None else images
        states = initial_states(model, model.reset_parameters, repeats, seed)
    model.to(device)
    kappas = feature_condition_numbers(
        model,
        features=AsViT.features,
        images=batch.to(device),
        states=states,
    )
    curves = curve_scores(
        model,
        features=AsViT.features,
        shape=shape,
        states=states,
        seed=seed,
        second_order=second_order,
    )
    return _summary(kappas, curves, second_order=second_order)


def _summary(kappas: Sequence[float], curves: Sequence[CurveScore], *, second_order: bool) -> Scores:
    """The means over the initialisations."""
    ntk = _mean(kappas)
    length = _mean([curve.length for curve in curves])
    curvature = _mean([curve.curvature for curve in curves])
    gauss_length = _mean([curve.gauss_length for curve in curves])
    wanted = [ntk, length]
    if second_order:
        wanted += [curvature, gauss_length]
    degenerate = length <= 0 or not all(map(math.isfinite, wanted))
    return Scores(
        ntk,
        length_distortion=length,
        curvature=curvature,
        gauss_length=gauss_length,
        degenerate=degenerate,
    )


def _mean(values: Sequence[float]) -> float:
    """The mean of finite values; else nan if there is one, or inf."""
    if all(map(math.isfinite, values)):
        return math.fsum(values) / len(values)
    if any(map(math.isnan, values)):
        return math.nan
    return math.inf
