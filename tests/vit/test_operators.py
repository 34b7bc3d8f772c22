"""Growth operators against literal twins: the published maps, simultaneous moves, exact identity, optimizer state."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion.growth import UnitError
from autoprog_diffusion.vit.autoprog_one.config import Operator, OptimizerState
from autoprog_diffusion.vit.autoprog_one.elastic import ElasticModel
from autoprog_diffusion.vit.autoprog_one.groups import find_groups
from autoprog_diffusion.vit.autoprog_one.operators import growth_map, kept_positions, move_tensors
from autoprog_diffusion.vit.ema import WeightAverage

from . import growing


PAIRS = [(old, new) for old in range(1, 15) for new in range(old, 3 * old + 2)]
OPERATORS: tuple[Operator, ...] = ("momentum", "interpolation", "stacking", "identity", "random")


def published_source(index: int, old: int, new: int) -> int:
    """The released code's formula, word for word (helpers.py:254-258 of arXiv 2203.14509's code)."""
    q = new // old
    if index * old // (q * old) < old - new % old:
        return index * old // (q * old)
    return (index + old - new % old) * old // (q * old + old)


@pytest.mark.parametrize("operator", ["interpolation", "momentum", "identity"])
def test_interpolation_is_the_published_map(operator: Operator) -> None:
    for old, new in PAIRS:
        growth = growth_map(operator, old, new)
        assert growth.sources == tuple(published_source(index, old, new) for index in range(new))


def test_interpolation_of_the_papers_depths() -> None:
    assert growth_map("interpolation", 9, 12).sources == (0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8)
    assert growth_map("interpolation", 12, 15).sources == (*range(9), 9, 9, 10, 10, 11, 11)
    assert growth_map("interpolation", 3, 6).sources == tuple(index // 2 for index in range(6))  # LiGO's formula
    # VOLO's second stage, 7 blocks to 11: the released code leaves these out first.
    assert growth_map("interpolation", 7, 11).inserted == (3, 5, 7, 9)


def test_stacking_and_random() -> None:
    for old, new in PAIRS:
        assert growth_map("stacking", old, new).sources == tuple(index % old for index in range(new))
        assert growth_map("random", old, new).sources == (*range(old), *[None] * (new - old))


def test_what_is_not_inserted_is_every_old_block_once_and_in_order() -> None:
    for operator in OPERATORS:
        for old, new in PAIRS:
            growth = growth_map(operator, old, new)
            rest = [source for position, source in enumerate(growth.sources) if position not in growth.inserted]
            assert rest == list(range(old))
            assert kept_positions(growth, new) == tuple(range(new))


def test_sub_networks_are_nested_and_those_of_interpolation_are_interpolations() -> None:
    for old, new in PAIRS:
        if new > 2 * old:
            continue
        growth = growth_map("interpolation", old, new)
        kept = [kept_positions(growth, depth) for depth in range(old, new + 1)]
        assert all(set(small) < set(large) for small, large in itertools.pairwise(kept))
        for positions in kept:
            sources = tuple(growth.sources[position] for position in positions)
            assert sources == growth_map("interpolation", old, len(positions)).sources


def test_moves_are_simultaneous() -> None:
    draw = random.Random(0)
    for _ in range(20):
        count = draw.randrange(2, 7)
        tensors = {f"{i}.{leaf}": torch.randn(3) for i in range(count) for leaf in ("w", "b")}
        names = [[f"{i}.w", f"{i}.b"] for i in range(count)]
        sources = [draw.choice([None, *range(count)]) for _ in range(draw.randrange(1, count + 1))]
        before = copy.deepcopy(tensors)
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        move_tensors(tensors, names, sources)
        for position in range(count):
            source = sources[position] if position < len(sources) else None
            for leaf in ("w", "b"):
                origin = position if source is None else source
                assert torch.equal(tensors[f"{position}.{leaf}"], before[f"{origin}.{leaf}"])
        assert {name: tensor.data_ptr() for name, tensor in tensors.items()} == addresses


def trained(name: str, depths: tuple[int, ...], optimizer: str = "AdamW") -> tuple[ElasticModel, WeightAverage, Any]:
    """A shallow network after three steps, with its average and optimizer."""
    model = growing.BUILDERS[name]().eval()  # without dropout: functions are compared
    elastic = ElasticModel(model, find_groups(model))
    elastic.set_depths(depths)
    average = WeightAverage(model, 0.9)
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    optimize = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-2, **options)
    for step in range(3):
        growing.loss_fn(model, *growing.batch(step, name)).backward()
        optimize.step()
        optimize.zero_grad()
        average.update()
    return elastic, average, optimize


def small(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths to grow from and to."""
    return ((1, 3), (2, 5)) if name == "volo" else ((3,), (5,))


@growing.models
def test_identity_preserves_the_function_exactly_and_trains(name: str) -> None:
    old, new = small(name)
    elastic, average, optimizer = trained(name, old)
    images, targets = growing.batch(9, name)
    before = growing.output(elastic.model, images)
    with average.swapped_in():
        averaged = growing.output(elastic.model, images)
    elastic.grow(new, "identity", "copy", average, [optimizer], seed=0)
    assert torch.equal(growing.output(elastic.model, images), before)
    with average.swapped_in():
        assert torch.equal(growing.output(elastic.model, images), averaged)
    growing.loss_fn(elastic.model, images, targets).backward()
    zeroed = [
        parameter
        for inserted in elastic.running
        for parameter in elastic.model.get_submodule(blocks_of(elastic)[inserted]).parameters()
        if not parameter.any()
    ]
    assert zeroed
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in zeroed if parameter.dim() == 2)


def blocks_of(elastic: ElasticModel) -> list[str]:
    return [name for group in elastic.groups for name in group.blocks]


def test_identity_refuses_blocks_it_does_not_know() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    elastic = ElasticModel(model, find_groups(model, ["*"]))
    elastic.set_depths([2])
    average, optimizer = WeightAverage(model, 0.9), torch.optim.SGD(model.parameters())
    with pytest.raises(UnitError, match=r"'1', a Linear, has \[\]: use operator='interpolation'"):
        elastic.grow([3], "identity", "copy", average, [optimizer], seed=0)


def block_tensors(model: nn.Module, values: dict[str, Tensor] | None, block: str) -> list[Tensor]:
    source = dict(model.named_parameters()) if values is None else values
    return [source[name].detach().clone() for name in source if name.startswith(f"{block}.")]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))


@growing.models
@pytest.mark.parametrize("operator", ["momentum", "interpolation", "stacking"])
def test_weights_and_average_follow_the_map(name: str, operator: Operator) -> None:
    old, new = small(name)
    elastic, average, optimizer = trained(name, old)
    model = elastic.model
    online = {n: p.detach().clone() for n, p in model.named_parameters()}
    means = {n: value.clone() for n, value in average.values.items()}
    elastic.grow(new, operator, "copy", average, [optimizer], seed=0)
    origin = means if operator == "momentum" else online
    for group, growth in zip(elastic.groups, [growth_map(operator, *pair) for pair in zip(old, new)]):
        for position, source in enumerate(growth.sources):
            block, origin_block = group.blocks[position], group.blocks[source or 0]
            assert equal(block_tensors(model, None, block), block_tensors(model, origin, origin_block))
            assert equal(block_tensors(model, average.values, block), block_tensors(model, means, origin_block))
    inside = {n for group in elastic.groups for block in group.tensors for n in block}
    assert all(torch.equal(p, origin[n]) for n, p in model.named_parameters() if n not in inside)


@growing.models
def test_random_blocks_are_new_the_rest_stays_and_the_random_state_too(name: str) -> None:
    old, new = small(name)
    elastic, average, optimizer = trained(name, new)  # what lies behind the prefix was trained too
    elastic.set_depths(old)
    model, built = elastic.model, dict(growing.BUILDERS[name]().named_parameters())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    elastic.grow(new, "random", "copy", average, [optimizer], seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    fresh = [group.blocks[i] for group, a, b in zip(elastic.groups, old, new) for i in range(a, b)]
    for n, parameter in model.named_parameters():
        is_new = any(n.startswith(f"{block}.") for block in fresh)
        if not is_new:
            assert torch.equal(parameter, before[n])
        elif parameter.dim() == 2:
            assert not torch.equal(parameter, before[n])
            # The model's own initialisation, not torch's default for linear layers, whose std here is 0.14 or more.
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.3)
        else:
            assert torch.equal(parameter, built[n])  # norms, biases and layer scales start at constants
        assert torch.equal(average.values[n], parameter) or not is_new
    drawn = [p.detach().clone() for p in model.parameters()]
    elastic.set_depths(old)
    elastic.grow(new, "random", "copy", average, [optimizer], seed=5)
    assert equal([p.detach() for p in model.parameters()], drawn)


@pytest.mark.parametrize("policy", ["copy", "average", "fresh"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_optimizer_state_follows_its_blocks(policy: OptimizerState, optimizer: str) -> None:
    """3 blocks to 5: sources 0, 1, 1, 2, 2; inserted are positions 1 and 3."""
    elastic, average, optimize = trained("hf-vit", (3,), optimizer)
    group = elastic.groups[0]
    named = dict(elastic.model.named_parameters())

    def state(position: int) -> list[dict[str, Any] | None]:
        found = [optimize.state.get(named[name]) for name in group.tensors[position]]
        return [copy.deepcopy(entry) if entry else None for entry in found]

    before = [state(position) for position in range(3)]
    elastic.grow([5], "interpolation", policy, average, [optimize], seed=0)
    after = [state(position) for position in range(6)]
    for position, source in ((0, 0), (2, 1), (4, 2)):
        assert same_state(after[position], before[source])
    assert after[5] == [None] * len(after[5])
    if policy == "fresh":
        assert after[1] == after[3] == [None] * len(after[1])
    elif policy == "copy":
        assert same_state(after[1], before[1])
        assert same_state(after[3], before[2])
    else:
        key = "exp_avg_sq" if optimizer == "AdamW" else "momentum_buffer"
        for mean, one, two in zip(after[1], before[1], before[2], strict=True):
            assert torch.equal(mean[key], (one[key] + two[key]) / 2)
            assert mean.get("step") == one.get("step")
        assert same_state(after[3], before[2])  # nothing lies behind the last block
    # Duplicates do not share their state, and training goes on.
    growing.loss_fn(elastic.model, *growing.batch(7)).backward()
    optimize.step()
    pointers = [v.data_ptr() for s in optimize.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert len(set(pointers)) == len(pointers)


def same_state(ours: list, theirs: list) -> bool:
    return all(
        one.keys() == two.keys() and all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(two[k])) for k in one)
        for one, two in zip(ours, theirs, strict=True)
    )


def test_the_average_is_the_formula_and_swaps_back_after_an_error() -> None:
    model = nn.Linear(3, 2)
    average, literal = WeightAverage(model, 0.6), {n: p.detach().clone() for n, p in model.named_parameters()}
    for update in range(1, 20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        decay = min(0.6, (1 + update) / (10 + update))
        for n, parameter in model.named_parameters():
            literal[n] = decay * literal[n] + (1 - decay) * parameter.detach()
            torch.testing.assert_close(average.values[n], literal[n])
    online = {n: p.detach().clone() for n, p in model.named_parameters()}
    with average.swapped_in():
        torch.testing.assert_close(model.weight.detach(), literal["weight"])
    with pytest.raises(RuntimeError, match="shapes"), average.swapped_in():
        model(torch.randn(1, 7))
    assert all(torch.equal(p, online[n]) for n, p in model.named_parameters())
