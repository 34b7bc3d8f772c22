"""What a way to train loses, by what was measured, and the words for it."""

from __future__ import annotations

import pytest

from autoprog_diffusion.planner.quality import Quality, measured, shorter_quality
from autoprog_diffusion.planner.verdict import judgement


def test_the_judgement_is_plain() -> None:
    for trained, words in (
        ("full", "The plan is full fine-tuning."),
        ("freeze", "Growth is not worth it for speed alone"),
        ("unfreeze", "Growth is not worth it for speed, train in full for fewer steps"),
        ("window 4", "Growth is not worth it for speed, train in full for fewer steps"),
        ("window 3", "is not known: window 3 was not measured"),
    ):
        assert words in judgement(trained)


def test_what_a_shorter_run_loses_lies_between_what_was_measured() -> None:
    half = measured("trained", "half the steps") or []
    assert len(half) == 4
    assert shorter_quality(0.5) == Quality(min(half), max(half))
    # Three quarters of the steps are 0.415 of the halving from all of them.
    assert shorter_quality(0.75).highest == pytest.approx(0.41504 * max(half), rel=1e-4)
    assert shorter_quality(1.0) == Quality(0.0, 0.0)
    losses = [shorter_quality(share).highest or 0.0 for share in (1.0, 0.9, 0.7, 0.5, 0.3, 0.25)]
    assert losses == sorted(losses)
    assert str(shorter_quality(0.1)) == "not measured"


def test_a_quality_is_told_to_a_tenth_of_a_percent() -> None:
    assert str(Quality(4.31, 5.35)) == "+4.3 to +5.3 % loss"
    assert str(Quality(-0.04, 0.03)) == "none"
    assert str(Quality(0.5, 0.5, ("step_in_backward on",))) == "+0.5 % loss; not measured: step_in_backward on"
