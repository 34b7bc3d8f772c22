"""A vision transformer of which only some blocks run and train: the first ones of every group, or fewer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.growth.units import set_trainable, trainable_now

from ..ema import WeightAverage
from .config import Ints, Operator, OptimizerState
from .groups import BlockGroup, Depths
from .operators import GrowthMap, all_tensors, growth_map, initialise, move_state, move_tensors, zero_branches


Positions = tuple[Ints, ...]
Optimizers = Iterable[torch.optim.Optimizer]


def skip(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    """The forward of a block that is left out; a module-level function, so that models stay copyable."""
    return hidden_states


def prefix(depths: Depths) -> Positions:
    """Positions of the first `depths[g]` blocks of every group g."""
    return tuple(tuple(range(depth)) for depth in depths)


class ElasticModel:
    """A model whose blocks run and train in part, and grow together with averages and optimizer state.

    Args:
        model: The bare model of full depth.
        groups: Its block groups.
    """

    def __init__(self, model: nn.Module, groups: Sequence[BlockGroup]) -> None:
        self.model = model
        self.groups = tuple(groups)
        self.depths: Ints = tuple(map(len, groups))
        self._positions = prefix(self.depths)
        # Parameters that the user froze stay frozen.
        self._trainable = trainable_now(model)
        self._outside = self._trainable - self._names(self.depths)

    @property
    def depth(self) -> int:
        """Blocks of the current prefix, over all groups."""
        return sum(self.depths)

    @property
    def running(self) -> Ints:
        """Indices, in forward order over all groups, of the blocks that run now."""
        indices: list[int] = []
        start = 0  # index of the group's first block
        for group, kept in zip(self.groups, self._positions):
            indices += [start + position for position in kept]
            start += len(group)
        return tuple(indices)

    def set_depths(self, depths: Depths) -> None:
        """Let the first `depths[g]` blocks of every group g run and train, and no other."""
        self.depths = tuple(depths)
        growing = self._trainable & self._names(depths)
        set_trainable(self.model, self._outside | growing)
        self.show(prefix(depths))

    def show(self, positions: Positions) -> None:
        """Let exactly some blocks run; the others return their input.

        Blocks of the prefix that are left out stay trainable and get no gradient: no optimizer moves them.

        Args:
            positions: Of the blocks that run, for every group.
        """
        self._positions = positions
        for group, kept in zip(self.groups, positions):
            for position, name in enumerate(group.blocks):
                block = self.model.get_submodule(name)
                if position in kept:
                    block.__dict__.pop("forward", None)
                    continue
                block.forward = skip
                for parameter in block.parameters():
                    parameter.grad = None

    def restore(self) -> None:
        """Let every block run, and everything train that did when this was built."""
        self.set_depths(list(map(len, self.groups)))

    def growing(self) -> dict[str, nn.Parameter]:
        """Every parameter that trains at full depth, by name."""
        named = dict(self.model.named_parameters())
        return {name: parameter for name, parameter in named.items() if name in self._trainable}

    def maps(self, operator: Operator, depths: Depths) -> list[GrowthMap]:
        """The origin of the blocks of a deeper prefix, if it grew from the current one; one map for every group.

        Args:
            operator: How it grows.
            depths: Of the deeper prefix, for every group.
        """
        return [growth_map(operator, old, new) for old, new in zip(self.depths, depths)]

    def grow(
        self,
        depths: Depths,
        operator: Operator,
        policy: OptimizerState,
        average: WeightAverage,
        optimizers: Optimizers,
        *,
        seed: int,
    ) -> None:
        """Grow weights, average and optimizer state to a deeper prefix, and let it run and train.

        `momentum` first loads all weights from the average, which grows from its own previous copy (MoGrow);
        `identity` lets inserted blocks start as the identity; `random` gives them new weights.

        Args:
            depths: Of every group, in blocks.
            operator: The origin of the inserted blocks.
            policy: What the optimizer's state of an inserted block starts with.
            average: Of the model.
            optimizers: Of the model's parameters.
            seed: Of new weights.
        """
        maps = self.maps(operator, depths)
        if operator == "momentum":
            average.copy_to_model()
        self._move(maps, policy, average, optimizers)
        for group, growth in zip(self.groups, maps):
            for position in growth.inserted:
                changed = self._refill(group, position, operator, seed)
                self._average_anew(changed, average)
        self.set_depths(depths)

    def extract(self, positions: Positions, average: WeightAverage, optimizers: Optimizers) -> None:
        """Keep some blocks as the new prefix: weights, average and optimizer state move together.

        Args:
            positions: Of the blocks, for every group, increasing.
            average: Of the model.
            optimizers: Of the model's parameters.
        """
        maps = [GrowthMap(kept, ()) for kept in positions]
        self._move(maps, "copy", average, optimizers)
        depths = [len(kept) for kept in positions]
        self.set_depths(depths)

    def _average_anew(self, names: Sequence[str], average: WeightAverage) -> None:
        """Let averages start again from the weights as they are; buffers among the names have none."""
        for name in names:
            if name in average.values:
                weights = self.model.get_parameter(name).detach()
                average.values[name].copy_(weights)

    def _names(self, depths: Depths) -> set[str]:
        """Names of the tensors in a prefix of `depths`."""
        names: set[str] = set()
        for group, depth in zip(self.groups, depths):
            names.update(*group.tensors[:depth])
        return names

    def _refill(self, group: BlockGroup, position: int, operator: Operator, seed: int) -> Sequence[str]:
        """Give an inserted block the weights of its operator; returns the names of the tensors that were changed."""
        name = group.blocks[position]
        block = self.model.get_submodule(name)
        if operator == "random":
            initialise(self.model, block, seed + position)
            return group.tensors[position]
        if operator == "identity":
            return [f"{name}.{inner}" for inner in zero_branches(block, name)]
        return ()

    def _move(
        self, maps: Sequence[GrowthMap], policy: OptimizerState, average: WeightAverage, optimizers: Optimizers
    ) -> None:
        """Move weights, averages and optimizer state of every group to the places its map gives."""
        parameters = dict(self.model.named_parameters())
        tensors = all_tensors(self.model)
        for group, growth in zip(self.groups, maps):
            move_tensors(tensors, group.tensors, growth.sources)
            move_tensors(average.values, group.tensors, growth.sources)
            for optimizer in optimizers:
                move_state(
                    optimizer,
                    parameters=parameters,
                    names=group.tensors,
                    growth=growth,
                    policy=policy,
                )
