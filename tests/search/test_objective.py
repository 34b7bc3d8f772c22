"""Ranks, votes and choices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from autoprog_diffusion.growth import GrowthConfig, select_blocks
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.search.objective import Candidate, Score, choose, list_candidates, ranks

from .reference import literal_rank_vote


def score(index: int, cost: float, kappa: float = 2.0, zico: float = 3.0, gain: float = 4.0) -> Score:
    return Score(Candidate(str(index), (index,), 1.0), cost, kappa, zico, gain)


def test_ranks_share_ties_and_put_nan_last() -> None:
    assert ranks([3.0, 1.0, 1.0 + 1e-9, math.nan, math.inf]) == [3.0, 1.0, 1.0, 4.0, 4.0]


def test_rank_vote_equals_the_literal_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        values = torch.randint(1, 5, (3, 4), generator=generator).double().tolist()
        scores = [score(i, *column) for i, column in enumerate(zip(*values))]
        assert choose("rank_vote", scores, 0)[0] == literal_rank_vote(*values)


def test_the_papers_vote_almost_never_grows() -> None:
    """A fact to build on: with 4 candidates the fastest wins 80 % of all rank orders, with 2 always."""

    def share(count: int) -> float:
        orders = list(itertools.permutations(range(1, count + 1)))
        wins = [
            choose("rank_vote", [score(i, i + 1.0, k, -z) for i, (k, z) in enumerate(zip(ks, zs))], 0)[0] == 0
            for ks in orders
            for zs in orders
        ]
        return sum(wins) / len(wins)

    assert share(2) == 1.0
    assert share(4) == pytest.approx(0.80, abs=0.01)


def test_gain_per_cost_is_not_always_the_fastest() -> None:
    scores = [score(0, 1.0, gain=1.0), score(1, 1.5, gain=3.0), score(2, 3.0, gain=3.5)]
    index, valued = choose("gain_per_cost", scores, 0)
    assert index == 1
    assert [s.value for s in valued] == pytest.approx([-3.0, -6.0, -3.5])


def test_a_degenerate_score_never_wins_the_vote() -> None:
    for field in ("kappa", "zico", "gain", "cost"):
        for bad in (math.nan, math.inf):
            good = {"cost": 9.0, "kappa": 99.0, "zico": -9.0, "gain": 0.0}
            scores = [score(0, **good), score(1, **{**good, "cost": 1.0, "kappa": 1.0, "zico": 9.0, field: bad})]
            index, valued = choose("rank_vote", scores, 0)
            assert index == 0
            assert valued[1].degenerate
            assert valued[1].value == math.inf


def test_gain_does_not_need_the_kernel_but_needs_the_gain() -> None:
    scores = [score(0, 1.0, kappa=math.inf, gain=2.0), score(1, 0.1, gain=math.nan)]
    assert choose("gain_per_cost", scores, 0)[0] == 0


def test_when_all_are_degenerate_the_cheapest_is_taken() -> None:
    assert choose("rank_vote", [score(0, 2.0, math.nan), score(1, 1.0, math.nan)], 0)[0] == 1


def test_random_is_seeded_and_not_constant() -> None:
    scores = [score(i, 1.0) for i in range(5)]
    picks = [choose("random", scores, seed)[0] for seed in range(20)]
    assert picks == [choose("random", scores, seed)[0] for seed in range(20)]
    assert len(set(picks)) > 2


def test_candidates_hold_what_trains_and_end_in_the_full_model() -> None:
    config = GrowthConfig(num_stages=4, search="zero_shot")
    first = list_candidates(config, 8, (), [1.0])
    assert {c.blocks for c in first} == {
        select_blocks(order, 8, level / 4) for order in config.search_orders for level in range(1, 5)
    }
    later = list_candidates(config, 8, (6, 7), [0.5, 1.0])
    assert all({6, 7} <= set(c.blocks) for c in later)
    assert later[-1].blocks == tuple(range(8))
    assert {c.resolution for c in later} == {0.5, 1.0}
    assert len({(c.blocks, c.resolution) for c in later}) == len(later)


def test_a_users_own_candidates() -> None:
    config = GrowthConfig(num_stages=2, search="zero_shot", search_candidates=((3, 1), (0,)))
    assert [c.blocks for c in list_candidates(config, 4, (), [1.0])] == [(1, 3), (0,), (0, 1, 2, 3)]
    assert [c.blocks for c in list_candidates(config, 4, (1,), [1.0])] == [(1, 3), (0, 1, 2, 3)]
    with pytest.raises(SearchError, match="outside 0 to 2"):
        list_candidates(config, 3, (), [1.0])
