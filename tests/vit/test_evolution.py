"""Regularised evolution by rank sums: finds, resumes, never falls for a degenerate network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.search.objective import ranks
from autoprog_diffusion.vit.asvit import SearchSpace
from autoprog_diffusion.vit.asvit.evolution import EvolutionSettings, evolve
from autoprog_diffusion.vit.asvit.ranking import best, order, rank_sums
from autoprog_diffusion.vit.asvit.score_cache import Evaluation, ScoreCache

from . import topology_scores as scores


SMALL = EvolutionSettings(steps=120, population=20, tournament=5)


def literal_rank_sums(evaluations: Sequence[Evaluation]) -> list[float]:
    """Count, for every sound network, the sound ones that beat it in each score."""
    sums = []
    for one in evaluations:
        better = [sum(not o.degenerate and o.ntk < one.ntk for o in evaluations)]
        better += [sum(not o.degenerate and o.length > one.length for o in evaluations)]
        sums.append(math.inf if one.degenerate else 2.0 + sum(better))
    return sums


def test_rank_sums_against_a_literal_count() -> None:
    values = [(3.0, 1.0), (1.0, 1.0), (2.0, 9.0), (math.nan, 99.0), (3.0, 0.5), (1.0, math.inf), (7.0, 7.0)]
    evaluations = [Evaluation(str(index), *pair) for index, pair in enumerate(values)]
    assert rank_sums(evaluations) == literal_rank_sums(evaluations)
    assert order(evaluations)[-2:] == [3, 5]  # nan and inf sort last
    sound = [item for item in evaluations if not item.degenerate]
    shared = zip(ranks([item.ntk for item in sound]), ranks([-item.length for item in sound]))
    assert [sum(pair) for pair in shared] == [value for value in rank_sums(evaluations) if value < math.inf]


def test_it_finds_the_best_network_of_the_space() -> None:
    space = SearchSpace(scores.SPACE)
    found = evolve(space, ScoreCache(scores.smooth), SMALL)
    top = max(scores.quality(str(space.build(dict(zip(space.choices, row))))) for row in every(space))
    assert scores.quality(found.genotype) == top
    assert len(set(found.trace)) == 120 < space.size


def every(space: SearchSpace) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = [()]
    for values in space.choices.values():
        rows = [(*row, value) for row in rows for value in values]
    return rows


def test_it_beats_random_sampling_of_equal_budget() -> None:
    space, wins = SearchSpace(), 0
    for seed in range(5):
        found = evolve(
            space, ScoreCache(scores.smooth), EvolutionSettings(steps=80, population=20, tournament=5, seed=seed)
        )
        drawn = evolve(space, ScoreCache(scores.smooth), EvolutionSettings(steps=80, population=80, seed=seed))
        wins += scores.quality(found.genotype) > scores.quality(drawn.genotype)
    assert wins >= 4


@pytest.mark.parametrize("seed", range(3))
def test_a_degenerate_network_never_wins_and_has_no_children_while_others_live(seed: int) -> None:
    settings = EvolutionSettings(steps=60, population=10, tournament=10, seed=seed)
    found = evolve(SearchSpace(scores.SPACE), ScoreCache(scores.tempting), settings)
    assert not scores.tempting(found.genotype).degenerate
    sound = [genotype for genotype in found.trace if not scores.tempting(genotype).degenerate]
    assert scores.quality(found.genotype) == max(map(scores.quality, sound))
    # A child differs from its parent in one choice of twelve: a sound parent mostly has sound children.
    assert len(sound) > 60 * 0.6


def test_a_space_of_degenerate_networks_is_an_error() -> None:
    with pytest.raises(SearchError, match="all 30 networks evaluated are degenerate"):
        evolve(SearchSpace({"K1": (5,)}), ScoreCache(scores.tempting), EvolutionSettings(steps=30, population=10))


def test_a_small_space_is_used_up_without_looping_forever() -> None:
    space = SearchSpace({name: values[:1] for name, values in scores.SPACE.items()} | {"E1": (2, 6)})
    found = evolve(space, ScoreCache(scores.smooth), EvolutionSettings(steps=9, population=4, tournament=2))
    assert len(set(found.trace)) == 2
    assert "6" in found.genotype.split("|")[0]


def test_resume_is_bit_exact_and_pays_for_nothing_twice(tmp_path_factory: pytest.TempPathFactory) -> None:
    for killed in (0, 5, 30, 59):
        tmp_path = tmp_path_factory.mktemp("case")
        space, settings = SearchSpace(scores.SPACE), EvolutionSettings(steps=60, population=15, tournament=4, seed=2)
        whole = ScoreCache(scores.tempting, tmp_path / "whole.json")
        expected = evolve(space, whole, settings)
        with pytest.raises(KeyboardInterrupt):
            evolve(space, ScoreCache(scores.killed_after(killed, scores.tempting), tmp_path / "a.json"), settings)
        again = ScoreCache(scores.tempting, tmp_path / "a.json")
        assert evolve(space, again, settings) == expected
        assert again.fresh == 60 - killed
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_best_of_nothing_sound_is_nothing() -> None:
    assert best([]) is None
    assert best([Evaluation("a", math.nan, 1.0)]) is None


@pytest.mark.parametrize("values", [{"steps": 0}, {"tournament": 0}, {"population": 3, "tournament": 4}], ids=str)
def test_settings_out_of_range_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="tournament between 1 and the population"):
        EvolutionSettings(**values)
