"""Auto-scaling: exact sizes, candidates, the tie rule against a literal twin, budgets, constraints, resume."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
import torch

from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.training.measure import counted_flops
from autoprog_diffusion.vit.asvit import AsViT, Genotype, GenotypeError
from autoprog_diffusion.vit.asvit.cost import multiply_adds, parameter_count
from autoprog_diffusion.vit.asvit.genotype import ZOO
from autoprog_diffusion.vit.asvit.ranking import SIGNS, best
from autoprog_diffusion.vit.asvit.scaling import (
    BudgetError,
    ScalingSettings,
    candidates,
    proxy,
    scale,
    smallest,
    width_step,
)
from autoprog_diffusion.vit.asvit.score_cache import Evaluation, ScoreCache

from . import topology_scores as scores


SEED = Genotype.parse(ZOO["seed"])
SMALL = ScalingSettings(budget_params=6e6, image_size=64, num_classes=10)


def growing(genotype: str) -> Evaluation:
    """Wider and deeper is more expressive and less trainable, with a preference for the third stage."""
    parsed = Genotype.parse(genotype, {})
    depth = sum(parsed.depths) + 0.5 * parsed.depths[2]
    return Evaluation(genotype, 10 + depth + parsed.width / 7, math.log(depth) + math.log(parsed.width) / 3)


def literal_best(evaluations: Sequence[Evaluation]) -> int:
    """The rule in words: rank each score, add, and among all that tie take the best of the wider-ranging score."""
    sound = [i for i, item in enumerate(evaluations) if not item.degenerate]
    sums = {}
    for i in sound:
        better_ntk = sum(evaluations[j].ntk < evaluations[i].ntk for j in sound)
        better_length = sum(evaluations[j].length > evaluations[i].length for j in sound)
        sums[i] = better_ntk + better_length
    tied = [i for i in sound if sums[i] == min(sums.values())]
    ntks, lengths = [evaluations[i].ntk for i in sound], [evaluations[i].length for i in sound]
    if (max(ntks) - min(ntks)) / max(map(abs, ntks)) >= (max(lengths) - min(lengths)) / max(map(abs, lengths)):
        return min(tied, key=lambda i: evaluations[i].ntk)
    return max(tied, key=lambda i: evaluations[i].length)


def test_size_and_cost_of_a_genotype_are_those_of_the_network() -> None:
    for name in ZOO:
        genotype = Genotype.parse(ZOO[name])
        with torch.device("meta"):
            model, images = AsViT(genotype, 1000, 224).eval(), torch.empty(1, 3, 224, 224)
        with torch.no_grad():
            assert counted_flops(partial(model, images)) == 2 * multiply_adds(genotype, 224, 1000)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameter_count(genotype, 1000)


def test_the_tie_rule_against_its_literal_twin() -> None:
    rng = Random(0)
    for _ in range(500):
        # Few different values: most draws tie.
        values = [(rng.choice((1.0, 2.0, 3.0)), rng.choice((10.0, 11.0, 30.0))) for _ in range(rng.randint(2, 9))]
        evaluations = [Evaluation(str(i), *pair) for i, pair in enumerate(values)]
        if rng.random() < 0.5:
            evaluations.append(Evaluation("broken", math.nan, 99.0))
        assert best(evaluations) == literal_best(evaluations)


def test_ties_are_decided_among_all_tied_and_in_the_scores_own_direction() -> None:
    # Rank sums 1 + 4, 2 + 3, 3 + 2, 4 + 1: all tie. The released code would look at the first two only.
    narrow_ntk = [Evaluation(str(i), 100.0 + i, 1.0 + i) for i in range(4)]
    assert best(narrow_ntk) == 3  # length ranges wider: the largest; the released code takes the smallest
    wide_ntk = [Evaluation(str(i), 1.0 + i, 100.0 + i) for i in range(4)]
    assert best(wide_ntk) == 0
    assert SIGNS == {"ntk": -1, "length": 1}


def test_candidates_grow_one_stage_and_the_width() -> None:
    current = smallest(SEED, SMALL)
    assert (current.depths, current.width, width_step(SEED, SMALL)) == ((1, 1, 1, 1), 32, 4)
    found = candidates(current, SMALL)
    # 32 * (1.05, 1.1, 1.15, 1.2) in steps of 4: 32 (no growth), 36, 36, 40.
    assert [g.width for g in found] == [36, 40] * 4
    assert {g.depths for g in found} == {(2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)}
    assert len(set(found)) == len(found)
    assert [g.width for g in candidates(replace(current, width=400), SMALL)] == [420, 440, 460, 480] * 4


@pytest.mark.parametrize(
    ("heads", "multiple", "head", "least", "shrink"),
    [(16, 8, 1, 1, 4), (32, 8, 8, 16, 4), (64, 16, 4, 8, 4), (32, 1, 1, 1, 1), (64, 8, 1, 16, 2)],
)
def test_hardware_constraints_hold_for_every_network(
    heads: int, multiple: int, head: int, least: int, shrink: int
) -> None:
    limits: dict[str, Any] = {"width_multiple": multiple, "head_dim_multiple": head, "min_head_dim": least}
    settings = replace(SMALL, budget_params=150e6, shrink=shrink, **limits)
    family = scale(replace(SEED, heads=heads), ScoreCache(growing), settings)
    assert len(family) > 3
    for member in family:
        genotype = Genotype.parse(member.genotype)
        genotype.check(64)
        proxy(genotype, shrink).check(64)
        assert genotype.width % multiple == 0
        for width, own_heads in zip(genotype.widths, genotype.stage_heads):
            assert width // own_heads % head == 0
            assert width // own_heads >= least


def test_constraints_that_leave_no_network_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_head_dim=32 .* heads of 64 have at most 16 channels"):
        scale(replace(SEED, heads=64), ScoreCache(growing), replace(SMALL, budget_params=1e9, min_head_dim=32))


def test_the_family_grows_to_the_budget_and_not_beyond() -> None:
    seen: list[Any] = []
    family = scale(SEED, ScoreCache(growing), SMALL, seen.append)
    assert seen == family
    assert all(member.params <= 6e6 for member in family)
    for early, late in itertools.pairwise(family):
        before, after = Genotype.parse(early.genotype), Genotype.parse(late.genotype)
        assert sum(after.depths) == sum(before.depths) + 1
        assert after.width > before.width
        assert late.params > early.params
    last = Genotype.parse(family[-1].genotype)
    assert all(parameter_count(g, 10) > 6e6 for g in candidates(last, SMALL))
    assert (family[0].candidates, family[1].candidates) == (1, 8)
    model = AsViT(last, 10, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == family[-1].params


def test_every_step_is_the_literal_best_of_its_candidates() -> None:
    family = scale(SEED, ScoreCache(growing), SMALL)
    for early, late in itertools.pairwise(family):
        fitting = [g for g in candidates(Genotype.parse(early.genotype), SMALL) if parameter_count(g, 10) <= 6e6]
        assert late.rejected == late.candidates - len(fitting)
        chosen = literal_best([growing(str(proxy(g, 4))) for g in fitting])
        assert late.genotype == str(fitting[chosen])


def test_a_budget_of_multiply_adds() -> None:
    family = scale(SEED, ScoreCache(growing), replace(SMALL, budget_params=None, budget_flops=2e8))
    assert len(family) > 1
    assert all(member.flops <= 2e8 for member in family)


def test_scores_are_taken_at_a_quarter_of_the_width_or_at_all_of_it() -> None:
    quarter, full = ScoreCache(growing), ScoreCache(growing)
    family = scale(SEED, quarter, SMALL)
    scale(SEED, full, replace(SMALL, shrink=1))
    assert {Genotype.parse(item.genotype, {}).width for item in quarter.evaluations} >= {8, 9, 10}
    assert family[0].ntk == growing(str(proxy(SEED, 4))).ntk
    assert all(Genotype.parse(item.genotype).width >= 32 for item in full.evaluations)
    heads = proxy(SEED, 4)
    assert heads.width * 8 // heads.heads == SEED.width * 8 // SEED.heads  # channels per head stay


def test_a_degenerate_candidate_never_wins_and_a_step_of_them_is_an_error() -> None:
    def third_stage_broken(genotype: str) -> Evaluation:
        broken = Genotype.parse(genotype, {}).depths[2] > 1
        return Evaluation(genotype, -1.0, 1e9, degenerate=True) if broken else growing(genotype)

    family = scale(SEED, ScoreCache(third_stage_broken), SMALL)
    assert all(Genotype.parse(member.genotype).depths[2] == 1 for member in family)
    with pytest.raises(SearchError, match="all 8 networks one step above .* are degenerate"):
        scale(SEED, ScoreCache(lambda genotype: Evaluation(genotype, math.nan, 1.0)), SMALL)


def test_resume_is_bit_exact(tmp_path_factory: pytest.TempPathFactory) -> None:
    for killed in (0, 1, 9, 20):
        tmp_path = tmp_path_factory.mktemp("case")
        whole = scale(SEED, ScoreCache(growing, tmp_path / "whole.json"), SMALL)
        with pytest.raises(KeyboardInterrupt):
            scale(SEED, ScoreCache(scores.killed_after(killed, growing), tmp_path / "a.json"), SMALL)
        again = ScoreCache(growing, tmp_path / "a.json")
        assert scale(SEED, again, SMALL) == whole
        assert again.fresh == len(again) - killed
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_budget_below_the_seed_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"smallest network, .*32.*parameters.*budget_params 1,000,000"):
        scale(SEED, ScoreCache(growing), replace(SMALL, budget_params=1e6))
    with pytest.raises(BudgetError, match=r"budget_flops 1,000"):
        scale(SEED, ScoreCache(growing), replace(SMALL, budget_params=None, budget_flops=1e3))
    with pytest.raises(GenotypeError, match="image size 60"):
        scale(SEED, ScoreCache(growing), replace(SMALL, image_size=60))


SETTINGS_OUT = [
    ({"budget_params": None}, "budget_flops"),
    ({"shrink": 0}, "shrink=0"),
    ({"factors": (1.0, 1.1)}, "factors"),
    ({"width_multiple": 0}, "width_multiple=0"),
]


def test_settings_out_of_range_are_refused() -> None:
    for values, named in SETTINGS_OUT:
        with pytest.raises(ConfigError, match=named):
            replace(SMALL, **values)
