"""The scores of a genotype: deterministic, of the same initialisations for all metrics, degenerate ones marked."""

from __future__ import annotations

import math
from statistics import fmean

import torch

from autoprog_diffusion.vit.asvit import AsViT, Genotype
from autoprog_diffusion.vit.asvit.features import feature_condition_numbers
from autoprog_diffusion.vit.asvit.length_distortion import curve_scores
from autoprog_diffusion.vit.asvit.scores import topology_scores


GENOTYPE = Genotype.parse("5,2,2|2,1,2|2,1,2|2,1,2|16,4")


def test_scores_are_means_over_the_same_fresh_networks() -> None:
    images = torch.randn(5, 3, 32, 32)
    found = topology_scores(GENOTYPE, image_size=32, images=images, repeats=3, seed=7, second_order=True)
    kappas, curves = [], []
    for repeat in range(3):
        # Each network as a user would draw it: the weights of both metrics are these.
        model = AsViT(GENOTYPE, 1, 32)
        torch.manual_seed(7 + repeat)
        model.reset_parameters()
        kappas += feature_condition_numbers(model, AsViT.features, images)
        curves += curve_scores(model, AsViT.features, (3, 32, 32), seed=7 + repeat, second_order=True)
    torch.testing.assert_close(found.ntk, fmean(kappas), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.length_distortion, fmean(c.length for c in curves), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.curvature, fmean(c.curvature for c in curves), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.gauss_length, fmean(c.gauss_length for c in curves), rtol=1e-3, atol=0)
    assert not found.degenerate


def test_scores_depend_on_their_arguments_alone() -> None:
    before = torch.get_rng_state()
    first = topology_scores(GENOTYPE, image_size=32, repeats=2)
    torch.testing.assert_close(torch.get_rng_state(), before)
    torch.manual_seed(99)
    second = topology_scores(GENOTYPE, image_size=32, repeats=2)
    assert (first.ntk, first.length_distortion) == (second.ntk, second.length_distortion)
    assert topology_scores(GENOTYPE, image_size=32, repeats=2, seed=1).ntk != first.ntk
    assert math.isnan(first.curvature)


def test_a_singular_or_broken_kernel_is_degenerate() -> None:
    same = torch.randn(1, 3, 32, 32).expand(4, -1, -1, -1)
    singular = topology_scores(GENOTYPE, image_size=32, images=same, repeats=2)
    assert (singular.ntk, singular.degenerate) == (math.inf, True)
    broken = topology_scores(GENOTYPE, image_size=32, images=same * math.nan, repeats=2)
    assert math.isnan(broken.ntk)
    assert broken.degenerate
