"""Kendall's tau-b against its definition, its interval, and the noise ceiling; one tiny run of the whole study."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def correlation(benchmark_folder: Callable[[str], Path]) -> ModuleType:
    benchmark_folder("asvit_ranking")
    return importlib.import_module("correlation")


def literal_tau(x: list[float], y: list[float]) -> float:
    concordant = discordant = tied_x = tied_y = pairs = 0
    for i in range(len(x)):
        for j in range(i):
            pairs += 1
            product = (x[i] - x[j]) * (y[i] - y[j])
            concordant += product > 0
            discordant += product < 0
            tied_x += x[i] == x[j]
            tied_y += y[i] == y[j]
    return (concordant - discordant) / ((pairs - tied_x) * (pairs - tied_y)) ** 0.5


def test_tau_is_that_of_its_definition(correlation: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 6, size=(2, 12)).astype(float)  # with ties
        assert correlation.kendall_tau(x, y) == pytest.approx(literal_tau(x.tolist(), y.tolist()))
    ordered = np.arange(9.0)
    assert correlation.kendall_tau(ordered, ordered**3) == 1
    assert correlation.kendall_tau(ordered, -ordered) == -1
    assert np.isnan(correlation.kendall_tau(ordered, np.ones(9)))
    # A worked example: 10 pairs, one of them discordant.
    assert correlation.kendall_tau(np.array([1, 2, 3, 4, 5.0]), np.array([1, 3, 2, 4, 5.0])) == pytest.approx(0.8)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(correlation: ModuleType) -> None:
    """Independent pairs: tau is 0."""
    rng, inside = np.random.default_rng(1), 0
    for trial in range(60):
        x, y = rng.normal(size=(2, 40))
        low, high = correlation.bootstrap_interval(x, y, draws=200, seed=trial)
        assert low < correlation.kendall_tau(x, y) < high
        inside += low <= 0 <= high
    assert inside >= 50


def test_the_ceiling_falls_with_noise(correlation: ModuleType) -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(size=(200, 1))
    ceilings = []
    for noise in (0.0, 0.5, 1.0):
        repeated = true + noise * rng.normal(size=(200, 3))
        found = correlation.noise_ceiling(repeated[:80], repeated[:, 0], kept=1, draws=40)
        assert found["noise"] == pytest.approx(noise, rel=0.2, abs=1e-9)
        assert found["spread"] == pytest.approx(1, rel=0.35)
        ceilings.append(found["ceiling"])
    assert ceilings[0] == 1
    assert ceilings[0] > ceilings[1] > ceilings[2]


def test_equal_values_share_a_rank(correlation: ModuleType) -> None:
    assert correlation.ranks(np.array([5.0, 1.0, 5.0, 7.0])).tolist() == [1.5, 0, 1.5, 3]


def test_the_study_resumes_after_a_kill_in_the_middle_of_a_line(
    benchmark_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark_folder("asvit_ranking")
    study = importlib.import_module("run")
    images = np.random.default_rng(0).integers(0, 256, size=(60, 32, 32), dtype=np.uint8)
    test = np.arange(60) % 4 == 0
    np.savez(tmp_path / "icons200_32.npz", x=images, y=np.arange(60) % 3, test=test, classes=np.array(["a", "b", "c"]))
    log = tmp_path / "runs.jsonl"
    settings = study.Settings(topologies=3, steps=2, batch=4, width=8)
    study.run(settings, tmp_path, tmp_path, seeds=2, limit=4)
    whole = log.read_text()
    log.write_text(whole + '{"genotype": "8,2')  # a kill
    study.run(settings, tmp_path, tmp_path, seeds=2, limit=None)
    assert log.read_text().startswith(whole)
    rows = study.read(tmp_path, settings)[1].rows
    assert [row["seed"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [row["genotype"] for row in rows] == 2 * [str(g) for g in study.sample(settings)]
    again = study.train(study.sample(settings)[0], 0, study.load(tmp_path), settings)
    assert again["test_loss"] == pytest.approx(rows[0]["test_loss"], rel=1e-5)
    study.report(tmp_path)
    assert "3 topologies" in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 0
    with pytest.raises(SystemExit, match="move the file"):
        study.read(tmp_path, study.Settings(steps=3))
