"""Kendall's tau-b with a bootstrap interval, and how much of it noise leaves within reach."""

from __future__ import annotations

import numpy as np


def kendall_tau(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b: (concordant - discordant) pairs over the geometric mean of the untied pairs of x and of y.

    Args:
        x: (n,).
        y: (n,).

    Returns:
        In [-1, 1]; nan where x or y is constant.
    """
    pairs = np.triu_indices(len(x), 1)
    signs = [np.sign(values[:, None] - values[None, :])[pairs] for values in (x, y)]
    untied = [float(np.abs(sign).sum()) for sign in signs]
    if min(untied) == 0:
        return float("nan")
    return float((signs[0] * signs[1]).sum() / np.sqrt(untied[0] * untied[1]))


def bootstrap_interval(
    x: np.ndarray, y: np.ndarray, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of tau-b when the pairs (x_i, y_i) are drawn anew with replacement."""
    rng = np.random.default_rng(seed)
    taus = []
    for _ in range(draws):
        rows = rng.integers(len(x), size=len(x))
        taus.append(kendall_tau(x[rows], y[rows]))
    low, high = np.nanquantile(taus, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def noise_ceiling(
    repeated: np.ndarray, measured: np.ndarray, kept: int, draws: int = 400, seed: int = 0
) -> dict[str, float]:
    """What a perfect metric could reach: accuracies carry the noise of the training seed.

    Args:
        repeated: Accuracies (n, seeds) of the networks that were trained at least twice; they give the noise.
        measured: Accuracies (m,) that the metric is correlated with.
        kept: Seeds that each of `measured` is the mean of.
        draws: Of the simulation.
        seed: Of the simulation.

    Returns:
        `noise`: standard deviation over seeds; `spread`: of the true accuracies, the noise of `measured` subtracted;
        `ceiling`: expected tau-b of m true accuracies with measured ones, both normal.
    """
    noise = float(np.sqrt(repeated.var(axis=1, ddof=1).mean()))
    spread = float(np.sqrt(max(measured.var(ddof=1) - noise**2 / kept, 0.0)))
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(draws, len(measured))) * spread
    noisy = true + rng.normal(size=true.shape) * noise / np.sqrt(kept)
    ceiling = 0.0 if spread == 0 else float(np.mean([kendall_tau(a, b) for a, b in zip(true, noisy)]))
    return {"noise": noise, "spread": spread, "ceiling": ceiling, "networks": len(repeated)}


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of every value from 0 (smallest); equal values share the mean of their ranks."""
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return below + (equal - 1) / 2
