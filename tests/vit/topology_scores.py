"""Cheap scores of a genotype for the tests of the searches: known optimum, known degenerate networks."""

from __future__ import annotations

import math
from collections.abc import Callable

from autoprog_diffusion.vit.asvit import Genotype
from autoprog_diffusion.vit.asvit.score_cache import Evaluation


SPACE = {"K1": (4, 5), "S1": (2,), "E1": (2, 6), "K2": (2, 4), "S2": (1,), "E2": (2, 6), "K3": (2, 4), "S3": (1,),
         "E3": (2, 6), "K4": (2, 4), "E4": (2, 6), "H": (16, 32)}  # fmt: skip


def quality(genotype: str) -> float:
    """Grows with every kernel and expansion, shrinks with the heads: one best network, and one worst."""
    parsed = Genotype.parse(genotype)
    return sum(parsed.kernels) + sum(parsed.expansions) - parsed.heads / 16


def smooth(genotype: str) -> Evaluation:
    """Both scores agree with `quality`."""
    value = quality(genotype)
    return Evaluation(genotype, 100.0 - value, math.log(1 + value))


def tempting(genotype: str) -> Evaluation:
    """Networks with K1 = 5 have scores better than all others, and are degenerate in three ways."""
    parsed = Genotype.parse(genotype)
    if parsed.kernels[0] != 5:
        return smooth(genotype)
    kind = sum(parsed.expansions) // 4 % 3
    if kind == 0:
        return Evaluation(genotype, math.nan, 1e9)
    if kind == 1:
        return Evaluation(genotype, -1.0, 1e9, degenerate=True)  # how the released code marks a nan
    return Evaluation(genotype, math.inf, math.nan)


def killed_after(count: int, evaluate: Callable[[str], Evaluation]) -> Callable[[str], Evaluation]:
    """`evaluate` that dies at call number `count` + 1."""
    calls = 0

    def run(genotype: str) -> Evaluation:
        nonlocal calls
        calls += 1
        if calls > count:
            raise KeyboardInterrupt
        return evaluate(genotype)

    return run
