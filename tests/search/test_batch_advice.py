"""Steps of one batch that are worth those of another, and the words about it."""

from __future__ import annotations

import math

import pytest

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.search.batch_advice import BatchAdvice, efficiency, sample_ratio, steps_to_match
from autoprog_diffusion.search.noise_estimate import NoiseEstimate


def estimate(noise: float, error: float = 0.0) -> NoiseEstimate:
    return NoiseEstimate(signal=1.0, noise=noise, inverse=1 / noise, error=error)


@pytest.mark.parametrize("noise", [0.0, 1.0, 32.0, 1e6])
def test_equal_progress_is_what_the_steps_are_worth_together(noise: float) -> None:
    steps = steps_to_match(32, 1000, 8, noise)
    assert steps * efficiency(8, noise) == pytest.approx(1000 * efficiency(32, noise))
    assert sample_ratio(32, 8, noise) == pytest.approx(steps * 8 / (1000 * 32))


def test_without_a_bound_only_the_images_count() -> None:
    assert steps_to_match(32, 1000, 8, math.inf) == 4000
    assert BatchAdvice(32, 1000, NoiseEstimate(0.0, 1.0, inverse=-1.0, error=0.1)).steps_with(64) == 500


def test_the_critical_batch_takes_twice_the_fewest_images_and_steps() -> None:
    advice = BatchAdvice(16, 1000, estimate(64.0))
    assert (advice.critical, advice.recommended) == (64.0, 16.0)
    assert sample_ratio(1e-9, advice.critical, 64.0) == pytest.approx(2)
    assert sample_ratio(1e-9, advice.recommended, 64.0) == pytest.approx(1.25)
    assert efficiency(advice.critical, 64.0) == 0.5


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (64, "64 images a step are more than are worth having: use about 25, for more steps, or as few as take"),
        (30, "30 images a step are a good choice, as far as the measurement goes."),
        (4, "up to 18 images a step cost hardly more images"),
    ],
)
def test_the_verdict_follows_the_interval(batch: int, words: str) -> None:
    advice = BatchAdvice(batch, 1000, estimate(100.0, error=0.002))
    assert "gradient noise scale: 100 images (95 %: 71 to 167)." in str(advice)
    assert words in str(advice)


def test_the_table_says_what_the_interval_leaves_open() -> None:
    lines = BatchAdvice(2, 1000, estimate(6.0, error=1 / 12)).lines()
    assert lines[1:5] == [
        "1000 steps of 2 images get as far as",
        "     1,750 steps of      1 images, with 0.80 to 1.00 times the images",
        "     1,000 steps of      2 images, with 1.00 to 1.00 times the images",
        "       625 steps of      4 images, with 1.00 to 1.40 times the images",
    ]
    assert len(lines) == 7


@pytest.mark.parametrize(("batch", "steps"), [(0, 10), (4, 0), (math.nan, 10)])
def test_bad_input_is_refused(batch: float, steps: int) -> None:
    with pytest.raises(SearchError, match="is not allowed: use a number above 0"):
        BatchAdvice(batch, steps, estimate(4.0))
