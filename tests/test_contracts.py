"""What every model family promises, over the whole table of `settings.py`."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import Layout

from .settings import BY_ID, FAMILIES, Family


ORDERS = ("interleaved", "suffix", "prefix")
families = pytest.mark.parametrize("family", [pytest.param(family, id=family.id) for family in FAMILIES])
orders = pytest.mark.parametrize("order", ORDERS)


def start(family: Family, steps: int = 6, **settings: Any) -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
    model = family.build().train()
    growth = GrowthScheduler(model, GrowthConfig(**{"num_stages": 3, **settings}))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2, weight_decay=0.1)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer)
    return model, growth, optimizer


def train(family: Family, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    family.loss(model, seed).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def outputs(family: Family, model: nn.Module) -> Tensor:
    """The output for the batch of seed 7, in evaluation mode."""
    training = model.training
    result = family.output(model.eval(), family.inputs(7, 2))
    model.train(training)
    return result


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def hooks(model: nn.Module) -> list[str]:
    """Names of the modules that carry any hook."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [name for name, module in model.named_modules() if any(getattr(module, kind) for kind in kinds)]


def block_names(layout: Layout, model: nn.Module) -> set[str]:
    """Parameters inside the modules that the layout calls its blocks, found by the text of their names."""
    prefixes = tuple(module + "." for unit in layout.blocks for module in unit.modules)
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@families
def test_units_partition_the_parameters(family: Family) -> None:
    model = family.build()
    layout = GrowthScheduler(model, GrowthConfig()).layout
    names = [name for unit in layout.units for name in unit.parameters]
    assert len(names) == len(set(names))
    assert set(names) == {name for name, _ in model.named_parameters()}
    assert all(unit.parameters for unit in layout.units)
    grown = {name for unit in layout.blocks for name in unit.parameters}
    # Only the timestep and label embedder that DiT keeps in block 0 is taken out of a block.
    taken = {n for n in block_names(layout, model) if n.startswith("transformer_blocks.0.norm1.emb.")}
    assert grown == block_names(layout, model) - taken
    assert bool(taken) == (family.id == "dit")


@families
def test_blocks_are_named_in_forward_order(family: Family) -> None:
    model = family.build().eval()
    layout = GrowthScheduler(model, GrowthConfig()).layout
    assert tuple(unit.name for unit in layout.blocks) == family.blocks
    ran: list[str] = []
    for unit in layout.blocks:
        first = model.get_submodule(unit.modules[0])
        first.register_forward_hook(lambda module, args, output, name=unit.name: ran.append(name))
    outputs(family, model)
    assert tuple(ran) == family.blocks


@families
def test_the_stage_embedding_enters_at_every_timestep_embedder(family: Family) -> None:
    growth = GrowthScheduler(family.build(), GrowthConfig())
    assert (0 if growth._embedding is None else len(growth._embedding.points)) == family.points
    if not family.points:
        return
    assert not [name for name in growth._embedding.points if "guidance" in name or "add_embedding" in name]


@orders
@families
def test_stages_nest_and_end_with_the_whole_model(family: Family, order: str) -> None:
    model, growth, _ = start(family, num_stages=4, order=order)
    open_now: list[set[str]] = []
    for _ in range(6):
        open_now.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        growth.step()
    assert len({len(names) for names in open_now}) == 4
    assert all(early <= late for early, late in zip(open_now, open_now[1:]))
    assert open_now[-1] == {name for name, _ in model.named_parameters()}


@orders
@families
def test_frozen_weights_rest_and_opened_ones_move(family: Family, order: str) -> None:
    model, growth, optimizer = start(family, order=order)
    named = dict(model.named_parameters())
    for step in range(6):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        frozen = {name for name, parameter in named.items() if not parameter.requires_grad}
        assert bool(frozen) == (growth.stage < 2)
        family.loss(model, step).backward()
        assert not [name for name in frozen if named[name].grad is not None]
        # Also what DDP needs: a parameter that trains and gets no gradient would hang the ranks.
        assert not [name for name in set(named) - frozen if named[name].grad is None]
        optimizer.step()
        moved = {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}
        assert moved == set(named) - frozen
        assert not [name for name in frozen if named[name] in optimizer.state]
        grew = growth.step()
        # Gradients are still there: a parameter that was trained must keep no stale one, an opened one must have none.
        assert not [name for name, parameter in named.items() if name in frozen and parameter.grad is not None]
        assert grew == (step in (1, 3))
        optimizer.zero_grad()


@families
def test_attaching_leaves_the_output_bitwise_unchanged(family: Family) -> None:
    results = []
    for stage_embedding in (False, True):
        model = family.build()
        growth = GrowthScheduler(model, GrowthConfig(stage_embedding=stage_embedding))
        growth.prepare(model, num_training_steps=4)
        assert bool(hooks(model)) == stage_embedding
        results.append(outputs(family, model))
    assert torch.equal(*results)
    # Freezing alone makes torch choose other CPU kernels: 2e-7 in SD3.
    torch.testing.assert_close(results[1], outputs(family, family.build()), rtol=1e-5, atol=1e-6)


@families
def test_the_stage_embedding_reaches_the_output(family: Family) -> None:
    model, growth, _ = start(family)
    before = outputs(family, model)
    with torch.no_grad():
        growth._embedding.table[0] += 1.0
    assert relative_error(outputs(family, model), before) > 1e-4


@orders
@families
def test_only_the_row_of_the_stage_trains(family: Family, order: str) -> None:
    model, growth, _ = start(family, order=order)
    for step, stage in enumerate((0, 0, 1, 1, 2, 2)):
        growth._embedding.table.grad = None
        family.loss(model, step).backward()
        used = growth._embedding.table.grad.abs().sum(dim=1) > 0
        assert used.tolist() == [row == stage for row in range(3)]
        growth.step()


VANILLA = """
import json, sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "autoprog_diffusion":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
try:
    import autoprog_diffusion
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("autoprog_diffusion could be imported")
import diffusers, torch
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    cls = getattr(diffusers, json.loads((folder / "config.json").read_text())["_class_name"])
    model = cls.from_pretrained(folder).eval()
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    with torch.no_grad():
        torch.save(model(**inputs, return_dict=False)[0], folder / "outputs.pt")
"""


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every family trained over three stages and folded; its outputs before, after, and in a process without us."""
    root: Path = tmp_path_factory.mktemp("folded")
    results: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        model, growth, optimizer = start(family)
        for step in range(6):
            train(family, model, optimizer, step)
            growth.step()
        result = results[family.id] = {"model": model, "rows": growth._embedding.table.detach().clone()}
        result["before"] = outputs(family, model)
        growth.fold(model)
        result["after"] = outputs(family, model)
        model.save_pretrained(root / family.id)
        torch.save(family.inputs(7, 2), root / family.id / "inputs.pt")
    command = [sys.executable, "-I", "-c", VANILLA, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for family in FAMILIES:
        results[family.id]["vanilla"] = torch.load(root / family.id / "outputs.pt", weights_only=True)
        results[family.id]["class"] = json.loads((root / family.id / "config.json").read_text())["_class_name"]
    return results


@families
def test_fold_is_exact_and_leaves_a_plain_model(family: Family, folded: dict[str, dict[str, Any]]) -> None:
    result = folded[family.id]
    assert (result["rows"].abs().amax(dim=1) > 1e-3).all()
    assert relative_error(result["after"], result["before"]) < 1e-5
    model = result["model"]
    assert hooks(model) == []
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in family.build().named_parameters()}


@families
def test_a_folded_model_reloads_without_the_library(family: Family, folded: dict[str, dict[str, Any]]) -> None:
    result = folded[family.id]
    assert result["class"] == type(family.build()).__name__
    assert torch.equal(result["vanilla"], result["after"])


@families
def test_fold_writes_the_averaged_row(family: Family) -> None:
    model, growth, optimizer = start(family, ema_decay=0.9)
    for step in range(6):
        train(family, model, optimizer, step)
        growth.step()
    embedding = growth._embedding
    assert not torch.equal(embedding.average[2], embedding.table[2])
    with torch.no_grad():
        embedding.table.copy_(embedding.average)
    before = outputs(family, model)
    growth.fold(model)
    assert relative_error(outputs(family, model), before) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["", "stage_dropout"])
@pytest.mark.parametrize("order", ["suffix", "interleaved"])
@families
def test_gradient_checkpointing_gives_equal_gradients(family: Family, order: str, dropout: float) -> None:
    grads = []
    for checkpointing in (False, True):
        model, growth, _ = start(family, order=order, stage_embedding_init="normal", stage_dropout=dropout)
        if checkpointing:
            model.enable_gradient_checkpointing()
        family.loss(model, 3).backward()
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        grads.append({**named, "table": growth._embedding.table.grad})
    plain, checkpointed = grads
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: n + m)


@families
def test_a_suffix_stage_cuts_the_front_off(family: Family) -> None:
    flops: dict[str, int] = {}
    for order in ORDERS:
        model, growth, _ = start(family, order=order)
        with FlopCounterMode(display=False) as counter:
            family.loss(model, 0).backward()
        flops[order] = counter.get_total_flops()
        if order == "suffix":
            first = growth.plan.stages[0].blocks[0]
            cut = [growth.layout.inputs, *growth.layout.blocks[:first]]
            assert first > 0
            named = dict(model.named_parameters())
            assert not [name for unit in cut for name in unit.parameters if named[name].grad is not None]
    assert flops["suffix"] < flops["prefix"]
    if not family.id.startswith(("sd", "unet")) or family.id == "sd3":  # UNets' blocks differ in size
        assert flops["suffix"] < flops["interleaved"]


@families
def test_frozen_front_runs_without_gradient_and_survives_an_exception(family: Family) -> None:
    model, growth, _ = start(family, order="suffix")
    first = growth.plan.stages[0].blocks[0]
    inside = model.get_submodule(growth.layout.blocks[first - 1].modules[0])
    live = model.get_submodule(growth.layout.blocks[first].modules[0])
    seen: dict[str, bool] = {}
    inside.register_forward_pre_hook(lambda *_: seen.update(front=torch.is_grad_enabled()))
    live.register_forward_pre_hook(lambda *_: seen.update(live=torch.is_grad_enabled()))
    family.loss(model, 0)
    assert seen == {"front": False, "live": True}

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = inside.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        family.loss(model, 0)
    assert torch.is_grad_enabled()
    handle.remove()
    family.loss(model, 0).backward()


@families
def test_stage_dropout_draws_one_row_per_sample_for_all_embedders(family: Family) -> None:
    model = family.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, stage_dropout=0.5))
    raw: list[Tensor] = []
    seen: list[Tensor] = []
    for name in growth._embedding.points:  # before and after the embedding's own hook
        model.get_submodule(name).register_forward_hook(lambda module, args, output: raw.append(output.detach()))
    growth.prepare(model, num_training_steps=3)
    for name in growth._embedding.points:
        model.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    with torch.no_grad():
        growth._embedding.table[0], growth._embedding.table[3] = 1.0, -1.0

    def signs(seed: int) -> Tensor:
        raw.clear(), seen.clear()
        torch.manual_seed(seed)
        model(**family.inputs(0, 16), return_dict=False)
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


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, growth: GrowthScheduler) -> io.BytesIO:
    buffer = io.BytesIO()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "growth": growth.state_dict()}
    torch.save(states, buffer)
    buffer.seek(0)
    return buffer


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Equal to the last bit, tensors included."""
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), path
        for index, (a, b) in enumerate(zip(ours, theirs)):
            assert_same(a, b, f"{path}.{index}")
    else:
        assert ours == theirs, path


@pytest.mark.parametrize(
    ("family", "order"),
    [pytest.param(family, "suffix", id=f"{family.id}-suffix") for family in FAMILIES]
    + [pytest.param(BY_ID["dit"], order, id=f"dit-{order}") for order in ("interleaved", "prefix")],
)
def test_resume_at_every_step_is_bit_exact(family: Family, order: str) -> None:
    settings = {"order": order, "ema_decay": 0.9, "stage_dropout": 0.2, "stage_embedding_init": "carry"}
    model, growth, optimizer = start(family, **settings)
    snapshots = [snapshot(model, optimizer, growth)]
    for step in range(6):
        train(family, model, optimizer, step)
        growth.step()
        snapshots.append(snapshot(model, optimizer, growth))
    whole = torch.load(snapshots[-1], weights_only=True)
    for begin, buffer in enumerate(snapshots[:-1]):
        states = torch.load(buffer, weights_only=True)
        model, growth, optimizer = start(family, **settings)
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        growth.load_state_dict(copy.deepcopy(states["growth"]))
        for step in range(begin, 6):
            train(family, model, optimizer, step)
            growth.step()
        ours = torch.load(snapshot(model, optimizer, growth), weights_only=True)
        assert_same(ours, whole, f"resumed at {begin}")
