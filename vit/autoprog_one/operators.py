"""Growth operators: the source of every block of a deeper network, and moving weights and state there.

Source: AutoProg (arXiv 2203.14509), its released code for the exact maps; stacking as in LiGO (arXiv 2303.00980).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import UnitError

from .config import Ints, Operator, OptimizerState


Names = Sequence[Sequence[str]]  # of the tensors of every block, in the same order for all
State = dict[str, Any]  # of an optimizer, for one parameter

# Last projections of a block's residual branches, in the words of timm, VOLO and transformers (new and old).
BRANCH_ENDS = ("attn.proj", "mlp.fc2", "attention.o_proj", "attention.output.dense", "output.dense")


@dataclass(frozen=True)
class GrowthMap:
    """The origin of the blocks of a deeper prefix.

    Attributes:
        sources: For every new position the old one; None for a newly initialised block.
        inserted: The new positions that are duplicates or new, in order; the others hold each old block once.
    """

    sources: tuple[int | None, ...]
    inserted: Ints


def growth_map(operator: Operator, old: int, new: int) -> GrowthMap:
    """The map from `old` blocks to `new` >= `old` ones.

    `momentum` and `identity` use the map of `interpolation`; only the weights differ (see `ElasticModel.grow`).

    Args:
        operator: How the prefix grows.
        old: Blocks of the prefix now.
        new: Blocks of the deeper one.

    Example:
        >>> growth_map("interpolation", 3, 5)
        GrowthMap(sources=(0, 1, 1, 2, 2), inserted=(1, 3))
        >>> growth_map("stacking", 2, 3)
        GrowthMap(sources=(0, 1, 0), inserted=(2,))
    """
    kept = range(old)
    appended = tuple(range(old, new))
    if operator == "random":
        nothing = [None] * (new - old)
        return GrowthMap((*kept, *nothing), appended)
    if operator == "stacking":
        stacked = tuple(index % old for index in range(new))
        return GrowthMap(stacked, appended)
    sources = tuple(_interpolated(index, old, new) for index in range(new))
    inserted = []
    for index, (source, following) in enumerate(pairwise(sources)):
        if source == following:  # of equal neighbours the last one is the old block
            inserted.append(index)
    return GrowthMap(sources, tuple(inserted))


def _interpolated(index: int, old: int, new: int) -> int:
    """Source of one block: each old block q = new // old times, the last new % old of them once more.

    Args:
        index: Of the new block.
        old: Blocks of the prefix now.
        new: Blocks of the deeper one.
    """
    times, rest = divmod(new, old)
    plain = old - rest  # old blocks that appear q times
    if index < plain * times:
        return index // times
    return (index + plain) // (times + 1)


def kept_positions(growth: GrowthMap, depth: int) -> Ints:
    """Positions of the sub-network of `depth` in the grown one: the first inserted blocks are left out.

    So the deepest duplicates are kept longest, and sub-networks are nested.

    Args:
        growth: The origin of the grown network's blocks.
        depth: Blocks that are kept; at least as many as are not inserted.
    """
    count = len(growth.sources)
    dropped = growth.inserted[: count - depth]
    return tuple(position for position in range(count) if position not in dropped)


def move_tensors(tensors: Mapping[str, Tensor], names: Names, sources: Sequence[int | None]) -> None:
    """Copy the tensors of block `sources[i]` into block i, all at once.

    Args:
        tensors: Name -> tensor; names that are missing are passed over (an average holds no buffers).
        names: For every block the names of its tensors, in the same order.
        sources: None leaves a block as it is.
    """
    moved: dict[str, Tensor] = {}
    for position, source in enumerate(sources):
        if source is None or source == position:
            continue
        for target, origin in zip(names[position], names[source]):
            if origin in tensors:
                # A copy: a block that is read may be written before its turn.
                moved[target] = tensors[origin].detach().clone()
    with torch.no_grad():
        for target, values in moved.items():
            tensors[target].copy_(values)


def move_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    names: Names,
    growth: GrowthMap,
    policy: OptimizerState,
) -> None:
    """Let the optimizer's state follow the blocks; blocks behind the prefix lose theirs.

    Old blocks keep their state. An inserted one starts with a copy of its source's; with the mean of its source's and
    that of the old block behind it, since interpolation puts it between the two; or with none.

    Args:
        optimizer: Of the parameters, or of some of them.
        parameters: Of the model, by name.
        names: For every block the names of its tensors, in the same order.
        growth: The origin of the blocks.
        policy: What an inserted block starts with: "copy", "average" or "fresh".
    """
    # All copied before any is written: a block that is read may be written before its turn.
    states = {}
    for name, parameter in parameters.items():
        if parameter in optimizer.state:
            states[name] = copy.deepcopy(optimizer.state[parameter])
    last = max(source for source in growth.sources if source is not None)
    for position, block in enumerate(names):
        inserted = position in growth.inserted
        source = None
        if position < len(growth.sources) and not (inserted and policy == "fresh"):
            source = growth.sources[position]
        for offset, name in enumerate(block):
            if name not in parameters:  # a buffer
                continue
            state = None if source is None else states.get(names[source][offset])
            if state is None:
                optimizer.state.pop(parameters[name], None)
                continue
            if inserted and policy == "average" and source is not None:
                behind = names[min(source + 1, last)][offset]
                state = _mean(state, states.get(behind, {}))
            optimizer.state[parameters[name]] = copy.deepcopy(state)


def zero_branches(block: nn.Module, name: str) -> list[str]:
    """Make a residual block the identity: zero the last projection of both branches.

    Args:
        block: With residual branches for attention and MLP.
        name: Of the block, for messages.

    Returns:
        Names of the zeroed parameters, relative to the block.

    Raises:
        UnitError: The block does not have two branches that end in a known projection.
    """
    modules = dict(block.named_modules())
    ends = [end for end in BRANCH_ENDS if isinstance(modules.get(end), nn.Linear)]
    if len(ends) != 2:
        raise UnitError(
            f"operator='identity' zeroes the last projections of a block's two branches, known as {BRANCH_ENDS}, but "
            f"{name!r}, a {type(block).__name__}, has {ends}: use operator='interpolation'."
        )
    zeroed = []
    with torch.no_grad():
        for end in ends:
            for inner, parameter in modules[end].named_parameters():
                parameter.zero_()
                zeroed.append(f"{end}.{inner}")
    return zeroed


def initialise(model: nn.Module, block: nn.Module, seed: int) -> None:
    """Give a block new weights by the model's own initialisation; the random state of the run does not move.

    Args:
        model: Has `_init_weights` where it is one of transformers, or of timm.
        block: Of the model.
        seed: Of the draw, the same on every rank.
    """
    own = getattr(model, "_init_weights", lambda module: None)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in block.modules():
            # transformers marks what it has initialised, and would pass over it.
            for marked in (module, *module.parameters(recurse=False)):
                vars(marked).pop("_is_hf_initialized", None)
            for method in ("reset_parameters", "_reset_parameters"):  # the latter of nn.MultiheadAttention
                reset = getattr(module, method, None)
                if reset is not None:
                    reset()
            own(module)


def _mean(state: State, other: State) -> State:
    """The mean of two states; step counters, which are no moments, are the first one's."""
    mean = dict(state)
    for key, value in state.items():
        moment = isinstance(value, Tensor) and value.dim() > 0
        if moment and key in other:
            mean[key] = (value + other[key]) / 2
    return mean


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name."""
    return dict([*module.named_parameters(), *module.named_buffers()])
