"""`ViTGrowth` in a training loop: every search to the end, resuming anywhere bit for bit."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.one_shot import evaluating, mean_loss
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth

from . import growing
from .growing import config, train


SEARCHES = ("one_shot", "zero_shot", "random", "fixed")
STEPS = 12


# Every search with one model, and the supernet with all of them.
RUNS = [("hf-vit", search) for search in SEARCHES]
RUNS += [pytest.param(name, "one_shot", marks=growing.marks(name)) for name in growing.BUILDERS if name != "hf-vit"]


@pytest.mark.parametrize(("name", "search"), RUNS)
def test_a_run_ends_in_a_plain_full_model(name: str, search: str) -> None:
    model = growing.BUILDERS[name]()
    vanilla = copy.deepcopy(model)
    growth, optimizer = growing.start(model, config(search), STEPS, name)
    shapes, entered = [], []
    for step in range(STEPS):
        shapes.append((growth.depth, growth.resolution))
        assert growth.resize(growing.batch(0, name)[0]).shape[-1] == growth.resolution
        if growing.one_step(model, growth, optimizer, step, name):
            entered.append((step + 1, growth.searching))
    full = (sum(growth._grid.sizes), growing.side(name))
    assert shapes[8:] == [full] * 4
    if search == "one_shot":
        assert entered[0] == (2, False)
        assert [step for step, _ in entered] in ([2, 4, 6, 8], [2, 4, 8])
        assert [record["search"] for record in growth.decisions] == ["one_shot"] * len(growth.decisions)
    else:
        assert entered == [(4, False), (8, False)]
    if search == "fixed":
        assert shapes == [(len(s.blocks), s.resolution) for s in growth.plan.stages for _ in range(4)]
    assert json.loads(json.dumps([*growth.decisions, *(r.to_dict() for r in growth.history)]))
    decided = {record["stage"]: record["choice"] for record in growth.decisions}
    for stage, choice in decided.items():
        entry = growth.plan.stages[stage]
        assert (len(entry.blocks), entry.resolution) == (choice["depth"], choice["resolution"])
    assert growth.history[-1].trainable_fraction == 1.0
    growth.fold(model)
    assert set(vars(model)) == set(vars(vanilla))
    assert not any("forward" in vars(module) for module in model.modules())
    vanilla.load_state_dict(model.state_dict())
    images, _ = growing.batch(5, name)
    assert torch.equal(growing.output(model.eval(), images), growing.output(vanilla.eval(), images))


def test_blocks_behind_the_prefix_do_not_move() -> None:
    model = growing.hf_vit()
    growth, optimizer = growing.start(model, config("fixed"), STEPS)
    behind = [p.detach().clone() for p in model.vit.layers[3:].parameters()]
    train(model, growth, optimizer, range(3))
    assert all(torch.equal(a, b) for a, b in zip(behind, model.vit.layers[3:].parameters(), strict=True))
    assert not any(p in optimizer.state for p in model.vit.layers[3:].parameters())


def test_a_supernet_trains_what_it_draws_and_scores_what_it_extracts() -> None:
    model = growing.hf_vit()
    growth, optimizer = growing.start(model, config("one_shot", search_steps=6), 24)
    runner = growth._started
    drawn = set()
    for step in range(6):
        drawn.add((growth.depth, growth.resolution))
        assert growth.searching
        assert len(growth._elastic.running) == growth.depth
        growing.one_step(model, growth, optimizer, step)
    assert len(drawn) > 1
    record = growth.decisions[0]
    choice = record["choice"]
    assert (growth.depth, growth.resolution) == (choice["depth"], choice["resolution"])
    # The last evaluation, at the end of the phase, is the loss of the extracted network with averaged weights.
    resize = functools.partial(growth._resized, resolution=choice["resolution"])
    with runner.average.swapped_in(), evaluating(model):
        loss = mean_loss(model, growing.loss_fn, [growing.batch(90), growing.batch(91)], resize)
    index = [(c["depth"], c["resolution"]) for c in record["candidates"]].index(
        (choice["depth"], choice["resolution"])
    )
    assert record["evaluations"][-1][index] == loss
    columns = zip(*record["evaluations"])
    assert [c["loss"] for c in record["candidates"]] == [sum(column) / 2 for column in columns]


def test_a_stage_with_nothing_to_search_just_trains() -> None:
    model = growing.hf_vit()
    growth, optimizer = growing.start(model, config("one_shot", min_depth=1.0, resolutions=(8, 12, 16)), STEPS)
    assert growth.searching
    assert growth.depth == 6
    train(model, growth, optimizer, range(STEPS))
    growth.fold(model)


def test_the_average_can_be_swapped_in_and_copied() -> None:
    model = growing.hf_vit().eval()
    growth, optimizer = growing.start(model, config("fixed"), STEPS)
    train(model, growth, optimizer, range(5))
    images = growth.resize(growing.batch(3)[0])
    online = growing.output(model, images)
    with growth.averaged():
        averaged = growing.output(model, images)
    copied = growth.ema_model()
    assert not torch.equal(averaged, online)
    assert torch.equal(growing.output(copied, images), averaged)
    assert torch.equal(growing.output(model, images), online)


def test_a_copy_of_a_mixed_precision_model_is_not_the_original(tmp_path: Path) -> None:
    """Accelerate's autocast is an attribute of the instance that a deep copy would share."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = growing.hf_vit().eval()
    growth = ViTGrowth(model, config("fixed"), accelerator)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    growth.prepare(wrapped, num_training_steps=STEPS)
    for step in range(3):
        growing.one_step(wrapped, growth, optimizer, step)
    images = growth.resize(growing.batch(3)[0])
    with growth.averaged():
        averaged = growing.output(wrapped, images)
    copied = growth.ema_model()
    assert not torch.equal(growing.output(copied, images), growing.output(model, images))
    torch.testing.assert_close(growing.output(copied, images).float(), averaged.float(), rtol=0.1, atol=0.05)
    AcceleratorState._reset_state(reset_partial_state=True)


def run(accelerator: Any, settings: ViTGrowthConfig, start: int, folder: Path, saves: tuple[int, ...] = ()) -> Any:
    """Train to the end, from a checkpoint if `start` is not 0; leave one before every step in `saves`."""
    torch.manual_seed(0)
    model = growing.hf_vit()
    growth = ViTGrowth(model, settings, accelerator)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    held_out = [growing.batch(90), growing.batch(91)]
    growth.prepare(wrapped, num_training_steps=STEPS, held_out=held_out, loss_fn=growing.loss_fn)
    if start:
        accelerator.load_state(str(folder / str(start)))
    for step in range(start, STEPS):
        if step in saves:
            accelerator.save_state(str(folder / str(step)))
        growing.one_step(wrapped, growth, optimizer, step)
    growth.fold(wrapped)
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return model.state_dict(), growth.state_dict()


def without_clocks(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "decisions": [{**d, "seconds": None} for d in state["decisions"]], "average": None}


# Steps at which a run is cut: inside a search (1, 5), at its end (2), between stages (4), inside a stage (6).
CUTS = {"one_shot": (1, 2, 4, 5), "zero_shot": (4,), "fixed": (4, 6)}


@pytest.mark.parametrize("search", CUTS)
def test_resuming_is_bit_exact_inside_and_between_stages_and_searches(
    search: str, tmp_path: Path, accelerator: Any
) -> None:
    settings, cuts = config(search), CUTS[search]
    weights, state = run(accelerator, settings, 0, tmp_path, cuts)
    for cut in cuts:
        resumed, again = run(accelerator, settings, cut, tmp_path)
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
        assert all(torch.equal(state["average"][name], again["average"][name]) for name in state["average"])
        assert without_clocks(state) == without_clocks(again)
