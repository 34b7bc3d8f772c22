"""The evaluated sub-network is the extracted one, bit for bit; candidates and draws are the paper's."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion.vit.autoprog_one.config import Operator, ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.elastic import ElasticModel
from autoprog_diffusion.vit.autoprog_one.groups import depth_grid, find_groups, resolution_grid, split_depths
from autoprog_diffusion.vit.autoprog_one.operators import GrowthMap, growth_map
from autoprog_diffusion.vit.autoprog_one.shapes import Grid, Shape, list_candidates
from autoprog_diffusion.vit.autoprog_one.supernet import Supernet
from autoprog_diffusion.vit.ema import WeightAverage
from autoprog_diffusion.vit.resolution import enable_dynamic_resolution

from . import growing


def grid_of(sizes: list[int], resolution: int, multiple: int, stages: int = 4) -> Grid:
    config = ViTGrowthConfig(num_stages=stages)
    depths = depth_grid(config, sizes)
    splits = dict(zip(depths, split_depths(depths, sizes)))
    return Grid(tuple(depths), tuple(resolution_grid(config, resolution, multiple)), splits, tuple(sizes))


def supernet(candidates: list[Shape], grid: Grid, maps: list[GrowthMap], length: int = 12, count: int = 5) -> Supernet:
    return Supernet(100, length, candidates, maps, grid, count, seed=3)


VOLO = grid_of([4, 14], 224, 32)


def test_candidates_are_the_papers() -> None:
    """VOLO-D1: the released code lists these by hand, stage by stage."""
    first = list_candidates(VOLO, 0, None)
    assert first == [Shape(depth, side) for depth in (9, 15, 18) for side in (128, 192, 224)]
    later = list_candidates(VOLO, 1, Shape(9, 128))
    assert later == [Shape(depth, side) for depth in (12, 15, 18) for side in (128, 160)]
    assert list_candidates(VOLO, 2, Shape(15, 224)) == [Shape(18, 224)]
    assert list_candidates(VOLO, 2, Shape(18, 160)) == [Shape(18, 160), Shape(18, 192)]
    assert list_candidates(VOLO, 3, Shape(12, 128)) == [Shape(18, 224)]


def test_draws_are_uniform_repeatable_and_leave_no_trace() -> None:
    candidates = list_candidates(VOLO, 0, None)
    net = supernet(candidates, VOLO, [])
    state, torch_state = random.getstate(), torch.random.get_rng_state()
    drawn = [net.draw(step) for step in range(9000)]
    assert drawn == [supernet(candidates, VOLO, []).draw(step) for step in range(9000)]
    counts = Counter(drawn)
    assert len(counts) == 9
    # Standard deviation 30: five of them on either side.
    assert all(850 < count < 1150 for count in counts.values())
    assert random.getstate() == state
    assert torch.equal(torch.random.get_rng_state(), torch_state)


EVALUATIONS_ARE_SPREAD = [(12, 5, {6, 8, 9, 11, 12}), (4, 2, {2, 4}), (1, 5, {1}), (2, 9, {1, 2}), (8, 1, {8})]


def test_evaluations_are_spread_over_the_second_half() -> None:
    for length, count, expected in EVALUATIONS_ARE_SPREAD:
        net = supernet([Shape(4, 8)], VOLO, [], length, count)
        assert {step for step in range(1, length + 1) if net.evaluates(100 + step)} == expected
        assert [net.ends(100 + step) for step in (length - 1, length)] == [False, True]


def grown(name: str, operator: Operator) -> tuple[ElasticModel, WeightAverage, Any, Supernet, Grid]:
    """A network after growth to its largest candidate and a step on each sub-network, so that duplicates differ."""
    model = growing.BUILDERS[name]()
    elastic = ElasticModel(model, find_groups(model))
    sizes = [len(group) for group in elastic.groups]
    grid = grid_of(sizes, growing.side(name), growing.side(name) // 4, stages=3)
    smallest = grid.splits[grid.depths[0]]
    elastic.set_depths(smallest)
    average, optimizer = WeightAverage(model, 0.5), torch.optim.AdamW(model.parameters(), lr=1e-2)
    maps = [growth_map(operator, *pair) for pair in zip(smallest, sizes)]
    elastic.grow(sizes, operator, "copy", average, [optimizer], seed=0)
    candidates = [Shape(depth, growing.side(name) // 2) for depth in grid.depths]
    net = supernet(candidates, grid, maps)
    enable_dynamic_resolution(model)
    for step, shape in enumerate(candidates):
        elastic.show(net.positions(shape.depth))
        images, targets = growing.batch(step, name)
        images = nn.functional.interpolate(images, size=shape.resolution)
        growing.loss_fn(model, images, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    return elastic, average, optimizer, net, grid


def outputs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return growing.output(model.eval(), images)


@growing.models
@pytest.mark.parametrize("operator", ["momentum", "stacking"])
def test_the_evaluated_network_is_the_extracted_one(name: str, operator: Operator) -> None:
    full = growing.batch(50, name)[0]
    images = [nn.functional.interpolate(full, size=growing.side(name) // ratio) for ratio in (1, 2)]
    for index in range(3):
        elastic, average, optimizer, net, grid = grown(name, operator)
        model, shape = elastic.model, net.candidates[index]
        elastic.show(net.positions(shape.depth))
        online = [outputs(model, x) for x in images]
        with average.swapped_in():
            averaged = [outputs(model, x) for x in images]
        running = [block for block, _ in named_blocks(elastic, elastic.running)]
        states = [state_of(model, optimizer, block) for block in running]
        elastic.extract(net.positions(shape.depth), average, [optimizer])
        assert all(torch.equal(outputs(model, x), y) for x, y in zip(images, online))
        with average.swapped_in():
            assert all(torch.equal(outputs(model, x), y) for x, y in zip(images, averaged))
        assert not any(torch.equal(a, b) for a, b in zip(online, averaged))
        # The optimizer's state moved along, and nothing is left behind the prefix.
        prefix = [block for block, _ in named_blocks(elastic, elastic.running)]
        assert elastic.depths == grid.splits[shape.depth]
        assert all(same(a, state_of(model, optimizer, block)) for a, block in zip(states, prefix, strict=True))
        behind = {block for group in elastic.groups for block in group.blocks} - set(prefix)
        assert not any(state_of(model, optimizer, block) for block in behind)
        assert not any(p.requires_grad for block in behind for p in model.get_submodule(block).parameters())


def named_blocks(elastic: ElasticModel, indices: tuple[int, ...]) -> list[tuple[str, nn.Module]]:
    blocks = [name for group in elastic.groups for name in group.blocks]
    return [(blocks[index], elastic.model.get_submodule(blocks[index])) for index in indices]


def state_of(model: nn.Module, optimizer: Any, block: str) -> dict[str, dict[str, torch.Tensor]]:
    named = model.get_submodule(block).named_parameters()
    return {n: {k: v.clone() for k, v in optimizer.state[p].items()} for n, p in named if optimizer.state.get(p)}


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n][k], theirs[n][k]) for n in ours for k in ours[n])


@growing.models
def test_an_extracted_network_is_the_librarys_own_shallow_model(name: str) -> None:
    elastic, average, optimizer, net, grid = grown(name, "momentum")
    depth = grid.depths[1]
    elastic.extract(net.positions(depth), average, [optimizer])
    shallow = growing.BUILDERS[name](depth)
    kept = {n: v for n, v in elastic.model.state_dict().items() if n in shallow.state_dict()}
    shallow.load_state_dict(kept)
    images = growing.batch(50, name)[0]
    assert torch.equal(outputs(elastic.model, images), outputs(shallow, images))


@growing.models
def test_a_hidden_block_is_not_touched_by_a_step(name: str) -> None:
    elastic, average, optimizer, net, grid = grown(name, "momentum")
    elastic.show(net.positions(grid.depths[0]))
    hidden = [i for i in range(sum(grid.sizes)) if i not in elastic.running]
    before = {b: [p.detach().clone() for p in m.parameters()] for b, m in named_blocks(elastic, tuple(hidden))}
    growing.loss_fn(elastic.model, *growing.batch(3, name)).backward()
    optimizer.step()
    for block, module in named_blocks(elastic, tuple(hidden)):
        assert all(p.grad is None for p in module.parameters())
        assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before[block], strict=True))
    assert before


@growing.models
def test_small_images_train_the_position_embeddings_and_full_ones_see_the_same_model(name: str) -> None:
    model = growing.BUILDERS[name]().eval()
    images = growing.batch(1, name)[0]
    vanilla = outputs(model, images)
    disable = enable_dynamic_resolution(model)
    assert torch.equal(outputs(model, images), vanilla)
    keys = list(model.state_dict())
    for size in (growing.side(name) // 2, growing.side(name) // 4):
        small = nn.functional.interpolate(images, size=size)
        growing.output(model, small).sum().backward()
        embeddings = [p for n, p in model.named_parameters() if n.endswith(("pos_embed", "position_embeddings"))]
        assert embeddings
        assert all(p.grad is not None and p.grad.any() for p in embeddings)
    assert list(model.state_dict()) == keys
    disable()
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        outputs(model, nn.functional.interpolate(images, size=growing.side(name) // 2))
    assert torch.equal(outputs(model, images), vanilla)
