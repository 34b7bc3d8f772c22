"""Vision transformers of timm and transformers: one unit per block, in forward order, as the model declares them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, register_adapter
from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import UnitError
from autoprog_diffusion.growth.units import Layout, build_layout

from .transformer import lists_where, members_of


# timm's `group_matcher` ends the position of parameters with this if they go with the group before them.
AFTER = 99999


Position = tuple[int, ...]
Match = re.Match[str]


@dataclass(frozen=True)
class Pattern:
    """One regular expression of timm's `group_matcher`.

    Attributes:
        group: Name of the group; `stem` holds what runs before the blocks.
        place: Of the group in forward order.
        regex: Matches the beginning of a parameter's name, up to the end of its module's.
        suffix: Ends the position of the parameters it matches; often empty.
    """

    group: str
    place: int
    regex: re.Pattern[str]
    suffix: Position

    def position(self, match: Match) -> Position:
        """Place in the forward order of what was matched; positions compare as tuples do."""
        return (self.place, *map(int, filter(None, match.groups())), *self.suffix)


def declared_by_timm(model: nn.Module) -> Layout:
    """Units of a timm model: its `group_matcher` says what the stem is, and what its blocks are, in forward order.

    Parameters that it puts behind the last block (the final norm), or does not name (the heads), are outputs.

    Raises:
        UnitError: It names no block, or something that is not a module.
    """
    patterns = list(_patterns(model))
    inputs: list[str] = []
    blocks: dict[Position, list[str]] = {}  # position -> names of the modules of one block
    for name, _ in model.named_parameters():
        found = _first_match(patterns, name)
        if found is None:
            continue
        pattern, match = found
        if pattern.group == "stem":
            inputs.append(name)
            continue
        *_, last = position = pattern.position(match)
        module = match.group()
        if last != AFTER and module not in blocks.setdefault(position, []):
            blocks[position].append(module)
    in_order = [modules for _, modules in sorted(blocks.items())]
    strange = sorted(set(chain(*in_order)) - dict(model.named_modules()).keys())
    if strange:
        raise UnitError(
            f"{type(model).__name__}.group_matcher names {strange}, which are no modules: give blocks=[...]."
        )
    return build_layout(model, [(modules[0], modules) for modules in in_order], inputs)


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
    return build_layout(model, [(name, [name]) for name in blocks], list(inputs))


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


def _patterns(model: nn.Module) -> Iterator[Pattern]:
    """The patterns of a model's `group_matcher`, in the order in which timm tries them."""
    groups: dict[str, Any] = model.group_matcher()  # type: ignore[operator]
    for place, (group, declared) in enumerate(groups.items()):
        entries = [(declared, None)] if isinstance(declared, str) else declared
        for regex, suffix in entries:
            yield Pattern(group, place, re.compile(regex), suffix or ())


def _first_match(patterns: list[Pattern], name: str) -> tuple[Pattern, Match] | None:
    """The pattern that a parameter belongs to, and its match."""
    for pattern in patterns:
        match = pattern.regex.match(name)
        if match is not None:
            return pattern, match
    return None


register_adapter(Adapter("timm", (), declared_by_timm, no_stage_embedding), matches=is_timm_model)
register_adapter(
    Adapter(
        "transformers ViT",
        ("DeiTPreTrainedModel", "ViTPreTrainedModel"),
        declared_by_transformers,
        no_stage_embedding,
    )
)
