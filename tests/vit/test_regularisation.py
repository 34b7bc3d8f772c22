"""Adaptive regularisation against the numbers of the paper's released recipe."""

from __future__ import annotations

import pytest

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.vit.training.augment_settings import AugmentSettings
from autoprog_diffusion.vit.training.randaugment import RandAugment, parse_randaugment
from autoprog_diffusion.vit.training.regularisation import ramp, strengths


def test_the_strengths_are_the_papers() -> None:
    found = strengths(AugmentSettings(aa="rand-m9-mstd0.5-inc1", reprob=0.25), 0.1, 4)
    assert [row.magnitude for row in found] == [4, 6, 7, 9]
    assert [row.drop_path for row in found] == pytest.approx([0, 0.0333, 0.0667, 0.1], abs=1e-3)
    assert [row.reprob for row in found] == pytest.approx([0, 0.0833, 0.1667, 0.25], abs=1e-3)


def test_one_stage_has_the_full_strength() -> None:
    (only,) = strengths(AugmentSettings(aa="rand-m9", reprob=0.3, aa_scale=0.0), 0.2, 1)
    assert (only.magnitude, only.drop_path, only.reprob) == (9, 0.2, 0.3)


def test_a_ramp_never_falls_below_nothing() -> None:
    # The released code's default scale is -0.5.
    assert [ramp(0.3, -0.5, stage, 4) for stage in range(4)] == pytest.approx([0, 0, 0.15, 0.3])


def test_no_randaugment_has_no_magnitude() -> None:
    assert {row.magnitude for row in strengths(AugmentSettings(aa=None), 0.0, 3)} == {0.0}


def test_timms_notation_is_read() -> None:
    assert parse_randaugment("rand-m9-mstd0.5-inc1") == RandAugment(9, 0.5, 2)
    assert parse_randaugment("rand-n3-m5") == RandAugment(5, 0.0, 3)


UNKNOWN_NOTATION = [
    ("rand-m9-x4", "x4"),
    ("augmix-m3", "increasing"),
    ("rand-m9-inc0", "inc1"),
    ("rand-m11", "at most 10"),
    ("rand-m9-n0", "whole number"),
    ("original", "increasing"),
    ("rand-m9-mstd", "mstd"),
]


def test_unknown_notation_is_refused() -> None:
    for text, word in UNKNOWN_NOTATION:
        with pytest.raises(ConfigError, match=word):
            parse_randaugment(text)
