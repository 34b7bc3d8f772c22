"""Units of vision transformers, for unfreezing a pretrained one: by what timm and transformers declare themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

from autoprog_diffusion.growth import Adapter, GrowthConfig, Layout, UnitError, register_adapter
from autoprog_diffusion.growth.units import build_layout


# timm's `group_matcher` ends an ordinal with this where the parameters go with what stands before them.
AFTER = 99999


def declared_by_timm(model: nn.Module) -> Layout:
    """Units of a timm model: its `group_matcher` says what the stem is, and what its blocks are, in forward order.

    What it puts behind the last block (the final norm), or does not name (the heads), is an output.

    Raises:
        UnitError: It names no block, or something that is not a module.
    """
    groups = _timm_groups(model)
    inputs = [parameter for name, parameter, ordinal in groups if name == "stem"]
    blocks: dict[tuple[int, ...], list[str]] = {}
    for module, _, ordinal in sorted((group for group in groups if group[0] != "stem"), key=lambda group: group[2]):
        if ordinal[-1] != AFTER and module not in blocks.setdefault(ordinal, []):
            blocks[ordinal].append(module)
    known = {name for name, _ in model.named_modules()}
    strange = sorted({module for modules in blocks.values() for module in modules} - known)
    if strange:
        raise UnitError(
            f"{type(model).__name__}.group_matcher names {strange}, which are no modules: give blocks=[...]."
        )
    return build_layout(model, [(modules[0], modules) for modules in blocks.values()], inputs)


def declared_by_transformers(model: nn.Module) -> Layout:
    """Units of a vision transformer of transformers: the list of layers whose class is in its `_no_split_modules`.

    Parameters in front of the first layer, in the order they are registered, are inputs; the rest is output.

    Raises:
        UnitError: It has no such list.
    """
    declared = set(getattr(model, "_no_split_modules", None) or ())
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and module and {type(child).__name__ for child in module} <= declared
    ]
    blocks = [f"{name}.{index}" for name, children in lists for index in range(len(children))]
    if not blocks:
        raise UnitError(f"{type(model).__name__} has no list of the layers it declares, {sorted(declared)}.")
    names = [name for name, _ in model.named_parameters()]
    first = next(index for index, name in enumerate(names) if name.startswith(f"{blocks[0]}."))
    return build_layout(model, [(name, [name]) for name in blocks], names[:first])


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


def _timm_groups(model: nn.Module) -> list[tuple[str, str, tuple[int, ...]]]:
    """Module (or `stem`), parameter, and place in the forward order, of every parameter that `group_matcher` names."""
    found: list[tuple[str, str, tuple[int, ...]]] = []
    for name, _ in model.named_parameters():
        match = next(((k, r, suffix) for k, p, suffix in _patterns(model) if (r := p.match(name))), None)
        if match is None:
            continue
        place, result, suffix = match
        if place == 0:
            found.append(("stem", name, (0,)))
        else:
            numbers = tuple(int(number) for number in result.groups() if number is not None)
            found.append((result.group(0), name, (place, *numbers, *suffix)))
    return found


def _patterns(model: nn.Module) -> Iterator[tuple[int, re.Pattern[str], tuple[int, ...]]]:
    """Place, pattern and suffix of the ordinal, in the order in which timm tries them; place 0 is the stem."""
    for place, (group, declared) in enumerate(model.group_matcher().items()):  # type: ignore[operator]
        entries = [(declared, None)] if isinstance(declared, str) else declared
        for pattern, suffix in entries:
            yield (0 if group == "stem" else place + 1, re.compile(pattern), suffix or ())


register_adapter(Adapter("timm", (), declared_by_timm, no_stage_embedding), matches=is_timm_model)
register_adapter(
    Adapter(
        "transformers ViT",
        ("DeiTPreTrainedModel", "ViTPreTrainedModel"),
        declared_by_transformers,
        no_stage_embedding,
    )
)
