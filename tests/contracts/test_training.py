"""Only what is open moves, and the stage embedding is where it should be."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..settings import Family
from .common import (
    embedded,
    embedded_ordered,
    hooks,
    ordered,
    outputs,
    relative_error,
    start,
    step_moves_what_trains,
    used,
)


@ordered
def test_frozen_weights_rest_and_opened_ones_move(family: Family, order: str) -> None:
    model, growth, optimizer = start(family, order=order)
    named = used(family, model)
    for step in range(6):
        frozen = step_moves_what_trains(family, model, named, optimizer, step)
        assert bool(frozen) == (growth.stage < 2)
        assert not [name for name in frozen if named[name] in optimizer.state]
        grew = growth.step()
        # Gradients are still there: a parameter that was trained must keep no stale one, an opened one must have none.
        assert not [name for name, parameter in named.items() if name in frozen and parameter.grad is not None]
        assert grew == (step in (1, 3))
        optimizer.zero_grad()


@embedded
def test_the_stage_embedding_changes_nothing_at_first_and_drops_by_the_sample(family: Family) -> None:
    attaching_leaves_the_output_bitwise_unchanged(family)
    stage_dropout_draws_one_row_per_sample_for_all_embedders(family)


def attaching_leaves_the_output_bitwise_unchanged(family: Family) -> None:
    results = []
    for stage_embedding in (False, True):
        model = family.build()
        growth = GrowthScheduler(
            model, GrowthConfig(stage_embedding=stage_embedding, order="interleaved", direction="unfreeze")
        )
        growth.prepare(model, num_training_steps=4)
        assert bool(hooks(model)) == stage_embedding
        results.append(outputs(family, model))
    assert torch.equal(*results)
    # Freezing alone makes torch choose other CPU kernels: 2e-7 in SD3.
    torch.testing.assert_close(results[1], outputs(family, family.build()), rtol=1e-5, atol=1e-6)
    # Once it has trained, it does reach the output.
    row = growth.stage_embedding.table[0]
    with torch.no_grad():
        row += torch.randn_like(row)  # a norm would undo a constant
    assert relative_error(outputs(family, model), results[1]) > 1e-4


@embedded_ordered
def test_only_the_row_of_the_stage_trains(family: Family, order: str) -> None:
    model, growth, _ = start(family, steps=3, order=order)
    for step, stage in enumerate((0, 1, 2)):
        assert growth.stage == stage
        growth.stage_embedding.table.grad = None
        family.loss(model, step).backward()
        gradient = growth.stage_embedding.table.grad
        if family.time_token and order == "suffix" and stage < 2:
            assert gradient is None  # the token ends at the frozen front
        else:
            assert (gradient.abs().sum(dim=1) > 0).tolist() == [row == stage for row in range(3)]
        growth.step()


def stage_dropout_draws_one_row_per_sample_for_all_embedders(family: Family) -> None:
    model = family.build().train()
    growth = GrowthScheduler(
        model, GrowthConfig(num_stages=3, stage_dropout=0.5, order="interleaved", direction="unfreeze")
    )
    raw: list[Tensor] = []
    seen: list[Tensor] = []
    for name in growth.stage_embedding.points:  # before and after the embedding's own hook
        model.get_submodule(name).register_forward_hook(lambda module, args, output: raw.append(output.detach()))
    growth.prepare(model, num_training_steps=3)
    for name in growth.stage_embedding.points:
        model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    with torch.no_grad():
        growth.stage_embedding.table[0], growth.stage_embedding.table[3] = 1.0, -1.0

    def signs(seed: int) -> Tensor:
        raw.clear(), seen.clear()
        torch.manual_seed(seed)
        family.output(model, family.inputs(0, 16))
        rows = torch.stack([after - before for before, after in zip(raw, seen, strict=True)]).flatten(2)
        torch.testing.assert_close(rows.abs(), torch.ones_like(rows), rtol=0, atol=1e-5)
        return rows.sign()

    rows = signs(0)
    assert len(rows) >= family.points
    assert (rows == rows[:1, :, :1]).all()
    assert {-1.0, 1.0} == set(rows[0, :, 0].tolist())
    assert any(not torch.equal(signs(seed), rows) for seed in (1, 2))  # drawn again in every pass
    model.eval()
    assert (signs(0) == 1).all()
