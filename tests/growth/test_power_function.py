"""Widths, decays and least squares of power-function averages, each against a slow literal twin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from autoprog_diffusion import ConfigError
from autoprog_diffusion.growth.power_function import (
    WIDEST,
    Profile,
    check_widths,
    coefficients,
    decay,
    exponent_of,
    relative_width,
)


EXPONENTS = (0.0, 1.0, 3.0, 6.94, 17.0, 100.0)


def literal_weights(exponent: float, steps: int) -> Tensor:
    """What every step counts in the average after `steps` steps, by following the updates, (steps,) float64."""
    weights = torch.zeros(steps, dtype=torch.float64)
    for step in range(1, steps + 1):
        share = decay(exponent, step)
        weights *= share
        weights[step - 1] += 1 - share
    return weights


def test_steps_count_as_the_integral_of_the_power_function_over_them() -> None:
    for exponent in EXPONENTS:
        ends = torch.arange(201, dtype=torch.float64) / 200
        wanted = (ends ** (exponent + 1)).diff()
        torch.testing.assert_close(literal_weights(exponent, 200), wanted, rtol=1e-9, atol=1e-15)


def test_the_relative_width_is_the_standard_deviation_of_the_weighting() -> None:
    for exponent in EXPONENTS:
        steps = 20_000
        times = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        weights = times**exponent
        weights /= weights.sum()
        mean = (weights * times).sum()
        width = (weights * (times - mean).square()).sum().sqrt().item()
        assert relative_width(exponent) == pytest.approx(width, rel=1e-4)


def test_width_and_exponent_are_each_others_inverse() -> None:
    for exponent in EXPONENTS:
        assert exponent_of(relative_width(exponent)) == pytest.approx(exponent, rel=1e-9, abs=1e-9)


def test_the_paper_s_numbers() -> None:
    assert exponent_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert exponent_of(0.05) == pytest.approx(16.97, abs=0.005)


def test_the_decay_is_the_measured_one_up_to_the_square_of_the_step() -> None:
    for step in (10, 100, 1000):
        assert abs(decay(3.0, step) - step / (step + 4)) < 11 / step**2


def test_the_product_of_profiles_is_the_literal_integral() -> None:
    times = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 1000  # up to step 200
    some = [Profile(0.0, 120), Profile(3.0, 120), Profile(6.94, 200), Profile(17.0, 50)]
    values = []
    for each in some:
        value = (each.exponent + 1) * (times / each.step) ** each.exponent / each.step
        values.append(value * (times < each.step))
    for one, first in zip(some, values):
        for other, second in zip(some, values):
            assert one.dot(other) == pytest.approx((first * second).sum().item() / 1000, rel=1e-4)


@pytest.mark.parametrize("width", [0.06, 0.08, 0.12, 0.2])
def test_least_squares_find_what_the_literal_fit_of_weights_finds(width: float) -> None:
    steps = 400
    known = []
    rows = []
    for step in range(40, steps + 1, 40):
        for exponent in (exponent_of(0.05), exponent_of(0.1)):
            known.append(Profile(exponent, step))
            rows.append(torch.nn.functional.pad(literal_weights(exponent, step), (0, steps - step)))
    wanted = literal_weights(exponent_of(width), steps)
    matrix = torch.stack(rows, dim=1)
    literal = torch.linalg.lstsq(matrix, wanted[:, None], driver="gelsd").solution[:, 0]
    found = torch.tensor(coefficients(Profile(exponent_of(width), steps), known), dtype=torch.float64)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)
    best = (matrix @ literal - wanted).norm() / wanted.norm()
    ours = (matrix @ found - wanted).norm() / wanted.norm()
    assert ours < 0.1
    assert ours < 1.5 * best + 2e-3


def test_a_tracked_average_is_found_again() -> None:
    known = [Profile(3.0, step) for step in (50, 100, 150, 200)]
    torch.testing.assert_close(
        torch.tensor(coefficients(Profile(3.0, 200), known)), torch.tensor([0.0, 0, 0, 1]), atol=1e-6, rtol=0
    )


def test_a_width_that_the_snapshots_do_not_give_is_refused() -> None:
    known = [Profile(exponent_of(0.1), 100), Profile(exponent_of(0.1), 200)]
    with pytest.raises(ConfigError, match=r"width 0\.02 at step 200 cannot be put together from 2 snapshots.*%"):
        coefficients(Profile(exponent_of(0.02), 200), known)


def test_widths_that_do_not_exist_are_refused() -> None:
    for width in (0.0, -0.1, 0.3, math.nan):
        with pytest.raises(ConfigError, match=r"does not exist: use a width above 0 and of at most 0\.2887"):
            exponent_of(width)


def test_widths_that_do_not_fit_the_run_are_refused() -> None:
    check_widths([0.05, WIDEST], 20)
    with pytest.raises(ConfigError, match=r"width 0\.05 spans 0\.5 of the 10 steps of this run.*between 0\.1 and"):
        check_widths([0.05], 10)
    for widths in ([], [0.1, 0.1]):
        with pytest.raises(ConfigError, match="one or several different relative widths"):
            check_widths(widths, None)
