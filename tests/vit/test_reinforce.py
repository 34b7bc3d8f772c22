"""REINFORCE as published, against a literal twin, and the file of evaluations that makes it resumable."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from autoprog_diffusion.growth import ConfigError, StateError
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.vit.asvit import SearchSpace
from autoprog_diffusion.vit.asvit.reinforce import ReinforceSettings, reinforce, reward
from autoprog_diffusion.vit.asvit.score_cache import Evaluation, ScoreCache

from . import topology_scores as scores


def history(*pairs: tuple[float, float]) -> list[Evaluation]:
    return [Evaluation(str(index), ntk, length) for index, (ntk, length) in enumerate(pairs)]


def literal_search(space: SearchSpace, steps: int, seed: int) -> tuple[list[str], list[float], list[torch.Tensor]]:
    """The published loop, written with distributions and a hand-made Adam."""
    generator = torch.Generator().manual_seed(seed)
    logits = [1e-3 * torch.randn(len(values), generator=generator) for values in space.choices.values()]
    means = [torch.zeros_like(row) for row in logits]
    squares = [torch.zeros_like(row) for row in logits]
    numerator = denominator = 0.0
    values: list[tuple[float, float]] = []
    trace, rewards = [], []
    for step in range(1, steps + 1):
        picks = [torch.multinomial(torch.softmax(row, 0), 1, generator=generator).item() for row in logits]
        named = {name: options[pick] for pick, (name, options) in zip(picks, space.choices.items())}
        trace.append(str(space.build(named)))
        found = scores.smooth(trace[-1])
        values.append((found.ntk, found.length))
        now = 0.0
        if step > 1:
            for column, sign in ((0, -1), (1, 1)):
                last = [pair[column] for pair in values[-20:]]
                now += sign * (last[-1] - last[-2]) / (max(last) - min(last) + 1e-6)
        rewards.append(now)
        numerator, denominator = 0.9 * numerator + 0.1 * now, 0.9 * denominator + 0.1
        advantage = now - numerator / denominator
        for index, (row, pick) in enumerate(zip(logits, picks)):
            # d(-advantage * log softmax(row)[pick]) / d row = advantage * (softmax - onehot)
            gradient = advantage * (torch.softmax(row, 0) - torch.eye(len(row))[pick])
            means[index] = 0.9 * means[index] + 0.1 * gradient
            squares[index] = 0.999 * squares[index] + 0.001 * gradient**2
            rate = 0.08 / (1 - 0.9**step)
            logits[index] = row - rate * means[index] / ((squares[index] / (1 - 0.999**step)).sqrt() + 1e-8)
    return trace, rewards, logits


def test_the_whole_search_against_its_literal_twin() -> None:
    space = SearchSpace(scores.SPACE)
    found = reinforce(space, ScoreCache(scores.smooth), ReinforceSettings(steps=60, seed=3))
    trace, rewards, logits = literal_search(space, 60, 3)
    assert list(found.trace) == trace
    assert found.rewards == pytest.approx(rewards, rel=1e-9, abs=1e-12)
    picks = [int(row.argmax()) for row in logits]
    named = {name: options[pick] for pick, (name, options) in zip(picks, space.choices.items())}
    assert found.genotype == str(space.build(named))


def test_reward_is_the_relative_change_in_the_better_direction() -> None:
    assert reward(history((10.0, 1.0)), 20) == 0.0
    both = reward(history((10.0, 1.0), (20.0, 2.0), (15.0, 3.0)), 20)
    assert both == pytest.approx(5 / 10 + 1 / 2, rel=1e-5)
    assert reward(history((10.0, 1.0), (10.0, 1.0)), 20) == 0.0


def test_reward_depends_on_the_order() -> None:
    good, better, bad = (10.0, 3.0), (5.0, 4.0), (20.0, 1.0)
    assert reward(history(bad, better, good), 20) < 0 < reward(history(better, bad, good), 20)


def test_the_range_is_that_of_the_window() -> None:
    far = history((1000.0, 0.0), (10.0, 1.0), (12.0, 1.0), (10.0, 1.0))
    assert reward(far, 3) == pytest.approx(1.0, rel=1e-5)
    assert reward(far, 4) == pytest.approx(2 / 990, rel=1e-5)


def test_a_degenerate_network_gets_the_worst_reward_and_leaves_no_trace_in_the_others() -> None:
    before = history((10.0, 1.0), (20.0, 2.0))
    broken = [Evaluation("nan", math.nan, 5.0), Evaluation("-1", -1.0, 9.0, degenerate=True)]
    for item in broken:
        assert reward([*before, item], 20) == -2.0
    after = Evaluation("x", 15.0, 3.0)
    assert reward([*before, *broken, after], 20) == reward([*before, after], 20)


def test_it_finds_a_good_network() -> None:
    found = reinforce(SearchSpace(scores.SPACE), ScoreCache(scores.smooth), ReinforceSettings(steps=400))
    qualities = sorted(map(scores.quality, found.trace))
    assert scores.quality(found.genotype) >= qualities[len(qualities) * 3 // 4]


@pytest.mark.parametrize("seed", range(3))
def test_a_degenerate_network_never_wins(seed: int) -> None:
    found = reinforce(SearchSpace(scores.SPACE), ScoreCache(scores.tempting), ReinforceSettings(steps=30, seed=seed))
    assert not scores.tempting(found.genotype).degenerate


def test_a_degenerate_argmax_gives_way_to_the_best_drawn() -> None:
    """With one step the logits are still noise, so the most probable network is one that nobody looked at."""
    for seed in range(20):
        cache = ScoreCache(scores.tempting)
        try:
            found = reinforce(SearchSpace(scores.SPACE), cache, ReinforceSettings(steps=1, seed=seed))
        except SearchError as error:
            assert "all 1 networks drawn are degenerate" in str(error)  # noqa: PT017
            continue
        assert not cache[found.genotype].degenerate


@pytest.mark.parametrize("killed", [1, 7, 20])
def test_resume_is_bit_exact_and_pays_for_nothing_twice(tmp_path: Path, killed: int) -> None:
    space, settings = SearchSpace(scores.SPACE), ReinforceSettings(steps=40, seed=1)
    whole = ScoreCache(scores.smooth, tmp_path / "whole.json", {"size": 64})
    expected = reinforce(space, whole, settings)
    with pytest.raises(KeyboardInterrupt):
        reinforce(
            space, ScoreCache(scores.killed_after(killed, scores.smooth), tmp_path / "a.json", {"size": 64}), settings
        )
    again = ScoreCache(scores.smooth, tmp_path / "a.json", {"size": 64})
    assert len(again) == killed
    assert reinforce(space, again, settings) == expected
    assert again.fresh == len(again) - killed
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_scores_that_are_not_finite_survive_the_file(tmp_path: Path) -> None:
    cache = ScoreCache(scores.tempting, tmp_path / "a.json")
    for genotype in ("5,2,2|2,1,2|2,1,2|2,1,2|16", "5,2,2|2,1,2|2,1,2|2,1,6|16", "4,2,2|2,1,2|2,1,2|2,1,2|16"):
        cache[genotype]
    assert repr(ScoreCache(scores.tempting, tmp_path / "a.json").evaluations) == repr(cache.evaluations)
    json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_ledger_of_other_settings_or_no_ledger_is_refused(tmp_path: Path) -> None:
    ScoreCache(scores.smooth, tmp_path / "a.json", {"size": 64})["4,2,2|2,1,2|2,1,2|2,1,2|16"]
    with pytest.raises(StateError, match="size was 64, now 32"):
        ScoreCache(scores.smooth, tmp_path / "a.json", {"size": 32})
    with pytest.raises(StateError, match="--resume"):
        ScoreCache(scores.smooth, tmp_path / "a.json", {"size": 64}, resume=False)
    (tmp_path / "b.json").write_text('{"version": 1, "settings"')
    with pytest.raises(StateError, match="b.json is not a file of evaluated networks"):
        ScoreCache(scores.smooth, tmp_path / "b.json")


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps=0"):
        ReinforceSettings(steps=0)
