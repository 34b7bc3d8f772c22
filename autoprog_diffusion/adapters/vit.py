"""Vision transformers of timm and transformers: one unit per block, in forward order, as the model declares them."""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import chain, takewhile
from typing import Any

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, register_adapter
from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import UnitError
from autoprog_diffusion.growth.units import Layout, build_layout

from .checkpointing import run_blocks_by
from .transformer import lists_where, members_of


# timm's `group_matcher` ends the position of parameters with this if they go with the group before them.
AFTER = 99999


Position = tuple[int, ...]  # in forward order; positions compare as tuples do


def declared_by_timm(model: nn.Module) -> Layout:
    """Units of a timm model: its `group_matcher` says what the stem is, and what its blocks are, in forward order.

    Parameters that it puts behind the last block (the final norm), or does not name (the heads), are outputs.

    Raises:
        UnitError: It names no block, or something that is not a module.
    """
    groups: Any = model.group_matcher()  # type: ignore[operator]
    inputs = []
    blocks = defaultdict(dict)  # position -> names of the modules of one block, each with None
    for name in dict(model.named_parameters()):
        group, position, module = _place(groups, name)
        if group == "stem":
            inputs.append(name)
        elif position[-1] != AFTER:
            blocks[position][module] = None
    in_order = [list(blocks[position]) for position in sorted(blocks)]
    strange = sorted(set(chain(*in_order)).difference(dict(model.named_modules())))
    if strange:
        raise UnitError(
            f"{type(model).__name__}.group_matcher names {strange}, which are no modules: give blocks=[...]."
        )
    return build_layout(model, in_order, inputs)


def declared_by_transformers(model: nn.Module) -> Layout:
    """Units of a vision transformer of transformers: the list of layers whose class is in its `_no_split_modules`.

    Parameters in front of the first layer, in the order they are registered, are inputs; the rest are outputs.

    Raises:
        UnitError: It has no such list.
    """
    declared = set(getattr(model, "_no_split_modules", None) or ())
    lists = lists_where(declared.__contains__, model.named_modules())
    blocks = members_of(model, lists)
    if not blocks:
        raise UnitError(f"{type(model).__name__} has no list of the layers it declares, {sorted(declared)}.")
    first_layer = f"{blocks[0]}."
    inputs = takewhile(lambda name: not name.startswith(first_layer), dict(model.named_parameters()))
    return build_layout(model, [[name] for name in blocks], list(inputs))


def no_stage_embedding(model: nn.Module, config: GrowthConfig) -> None:
    """None: a vision transformer has no timestep embedder that a stage embedding could enter at.

    Raises:
        UnitError: The configuration asks for one.
    """
    if config.stage_embedding or config.stage_dropout:
        raise UnitError(
            f"{type(model).__name__} has no timestep embedder that stage_embedding={config.stage_embedding}, "
            f"stage_dropout={config.stage_dropout} could enter at: set GrowthConfig(stage_embedding=False)."
        )


def is_timm_model(model: nn.Module) -> bool:
    """Whether a model says in timm's way what it is made of."""
    return callable(getattr(model, "group_matcher", None)) and hasattr(model, "pretrained_cfg")


def _place(groups: dict[str, Any], name: str) -> tuple[str, Position, str]:
    """Where a parameter belongs: its group, its position, and the name of its module.

    Args:
        groups: What a model's `group_matcher` returns: name of a group -> one regular expression, or a list of them
            with the ends of the positions. `stem` holds what runs before the blocks.
        name: Name of the parameter; the first expression that matches its beginning counts. Without one it is placed
            behind all blocks.
    """
    for place, (group, declared) in enumerate(groups.items()):
        expressions = [(declared, None)] if isinstance(declared, str) else declared
        for expression, end in expressions:
            match = re.match(expression, name)
            if match is not None:
                numbers = map(int, filter(None, match.groups()))
                return group, (place, *numbers, *(end or ())), match.group()
    return "", (AFTER,), ""


register_adapter(
    Adapter(
        name="timm",
        classes=(),
        layout=declared_by_timm,
        stage_embedding=no_stage_embedding,
    ),
    matches=is_timm_model,
)
register_adapter(
    Adapter(
        "transformers ViT",
        ("DeiTPreTrainedModel", "ViTPreTrainedModel"),
        declared_by_transformers,
        no_stage_embedding,
        run_blocks_by,
    )
)
