"""NTK and ZiCo scores of whole models against their literal twins, unit by unit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.units import Unit, trained_units
from autoprog_diffusion.search.ntk import condition_number, parameter_grams, unit_grams
from autoprog_diffusion.search.objective import Candidate
from autoprog_diffusion.search.probe import leaving_no_trace, score_units
from autoprog_diffusion.search.zico import mean_gradients, parameter_scores, unit_gain, unit_zico

from ..contracts.common import in_turn
from ..settings import BY_ID, Family
from .families import SEARCHED, model_and_calls
from .reference import literal_condition_number, literal_gram, literal_zico


families = pytest.mark.parametrize("family", SEARCHED, ids=lambda family: family.id)


def also(first: object, second: object) -> list[Any]:
    """Every family with the first value, and in every run of the suite some with the second one, too."""
    values = [in_turn(family, first, name=f"{family.id}-{first}", default=True) for family in SEARCHED]
    return values + [in_turn(family, second, name=f"{family.id}-{second}") for family in SEARCHED]


def weights_of(units: Iterable[Unit]) -> list[str]:
    return [name for unit in units for name in unit.parameters if "weight" in name]


@pytest.mark.parametrize(("family", "checkpointing"), also(False, True))
def test_one_probe_scores_every_subset(family: Family, checkpointing: bool) -> None:
    model, layout, calls = model_and_calls(family)
    if checkpointing:
        family.checkpoint(model)
    with leaving_no_trace(model):
        grams = unit_grams(layout, parameter_grams(model, calls[0]))
        last = len(layout.blocks) - 1
        for blocks in ([0], [0, last], [last], list(range(last + 1))):
            units = trained_units(layout, blocks)
            literal = literal_gram(model, calls[0], weights_of(units))
            ours = torch.stack([grams[unit.name] for unit in units if grams[unit.name].dim()]).sum(0)
            # Some host classes compute variances in float32 whatever the model's type.
            torch.testing.assert_close(ours, literal, rtol=1e-8, atol=1e-9 * float(literal.abs().max()))
            assert condition_number(ours) == pytest.approx(literal_condition_number(literal), rel=1e-7)


def test_the_scores_of_a_candidate_are_the_literal_ones_of_its_weights() -> None:
    model, layout, calls = model_and_calls(BY_ID["dit"], batch=4)
    candidate = Candidate("first and last", (0, len(layout.blocks) - 1), 1.0)
    units = trained_units(layout, candidate.blocks)
    weights = weights_of(units)
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    with leaving_no_trace(model):
        score = score_units(model, layout, calls, layout.names).score(candidate, units, cost=3.0)
        kappa = literal_condition_number(literal_gram(model, calls[-1], weights))
        zico = literal_zico(model, calls, [name for name in weights if name in layers])
    assert (score.candidate, score.cost) == (candidate, 3.0)
    assert (score.kappa, score.zico) == (pytest.approx(kappa, rel=1e-7), pytest.approx(zico, rel=1e-9))


@families
def test_float32_agrees_within_1e_4(family: Family) -> None:
    model, layout, calls = model_and_calls(family, dtype=torch.float32)
    with leaving_no_trace(model):
        grams = unit_grams(layout, parameter_grams(model, calls[0]))
        literal = literal_gram(model, calls[0], weights_of(layout.units))
    ours = sum(gram for gram in grams.values() if gram.dim())
    assert condition_number(ours) == pytest.approx(literal_condition_number(literal), rel=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "count"), also(2, 3))
def test_zico_of_every_unit(family: Family, count: int) -> None:
    model, layout, calls = model_and_calls(family, batch=2, count=count)
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    with leaving_no_trace(model):
        scores = parameter_scores(model, calls)
        zico = unit_zico(model, layout, scores)
        for unit in (layout.blocks[0], layout.blocks[-1], layout.outputs):
            names = [name for name in unit.parameters if name in layers and name in scores]
            # Entries whose gradients almost agree make the literal sum of three itself uncertain.
            assert zico[unit.name] == pytest.approx(
                literal_zico(model, calls, names), rel=1e-9 if count == 2 else 1e-6
            )


def test_gain_is_the_product_of_independent_halves() -> None:
    model, layout, calls = model_and_calls(BY_ID["unet2d"], batch=2, count=2)
    with leaving_no_trace(model):
        gains = unit_gain(layout, parameter_scores(model, calls))
        first, second = (mean_gradients(model, [call]) for call in calls)
    for unit in layout.units:
        expected = sum(
            float((first[n] * second[n] / ((first[n] ** 2 + second[n] ** 2) / 2).sqrt().clamp_min(1e-300)).sum())
            for n in unit.parameters
        )
        assert gains[unit.name] == pytest.approx(expected, rel=1e-9)


def test_gain_of_equal_batches_is_the_step_it_predicts() -> None:
    """Without noise the preconditioned step is lr * sign(g), and the loss falls by lr * sum |g|."""
    model, layout, calls = model_and_calls(BY_ID["unet2d"], batch=2, count=1)
    with leaving_no_trace(model):
        gains = unit_gain(layout, parameter_scores(model, [calls[0], calls[0]]))
        gradient = mean_gradients(model, [calls[0]])
    assert sum(gains.values()) == pytest.approx(float(sum(g.abs().sum() for g in gradient.values())), rel=1e-9)


def test_one_call_is_not_enough() -> None:
    model, _, calls = model_and_calls(BY_ID["unet2d"], batch=2, count=1)
    with pytest.raises(SearchError, match="at least 2 mini-batches, 1 were recorded"):
        parameter_scores(model, calls)
