"""Adapters: how a model family is cut into units, and where its stage embedding enters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from .config import GrowthConfig
from .errors import UnitError
from .units import Layout, layout_from_patterns


class StageEmbeddingLike(Protocol):
    """The members of a stage embedding that growth uses; ours is `adapters.stage_embedding.StageEmbedding`."""

    table: nn.Parameter

    def attach(self, model: nn.Module) -> None:
        """Add the hooks to the model, and move the table to its device."""
        ...

    def enter(self, stage: int, fresh: bool = True) -> None:
        """Use the row of `stage` from now on; `fresh` says whether the stage begins now, or was loaded."""
        ...

    def update_average(self, step: int) -> None:
        """Move the table's average, if one is kept, after optimizer step number `step` (counted from 1)."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the current row beside a checkpoint."""
        ...

    def fold(self, model: nn.Module) -> None:
        """Write the current row into the model's weights, and remove the hooks."""
        ...

    def folded(self, model: nn.Module) -> AbstractContextManager[None]:
        """Fold inside a `with` block only."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The state that a checkpoint keeps."""
        ...

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> object:
        """Continue with a saved state."""
        ...


@dataclass(frozen=True)
class Adapter:
    """One model family.

    Attributes:
        name: Name of the family, for messages.
        classes: Names of the model classes it covers; by name, so that no adapter imports its host.
        layout: Cuts a model into units.
        stage_embedding: Builds the stage embedding of a model, or none where the configuration leaves it open and a
            checkpoint would not hold it; raises `UnitError` where there is no place for one.
        checkpointing: Lets a model call a function, with the block and its arguments, in place of those of its blocks
            that may be computed again in the backward pass; returns what undoes that. Raises `UnitError` where a class
            has no such blocks. None for a family whose library takes no function.
    """

    name: str
    classes: tuple[str, ...]
    layout: Callable[[nn.Module], Layout]
    stage_embedding: Callable[[nn.Module, GrowthConfig], StageEmbeddingLike | None]
    checkpointing: Callable[[nn.Module, Callable[..., Any]], Callable[[], None]] | None = None


_ADAPTERS: dict[str, Adapter] = {}
# Families recognised by what a class declares; the first one also serves models whose blocks the user names.
_GENERIC: list[tuple[Callable[[nn.Module], bool], Adapter]] = []


def register_adapter(adapter: Adapter, *, matches: Callable[[nn.Module], bool] | None = None) -> None:
    """Make a family known: by its classes' names, and where none fits by `matches(model)`.

    Raises:
        UnitError: One of its classes is registered already.
    """
    taken = sorted(_ADAPTERS.keys() & adapter.classes)
    if taken:
        raise UnitError(f"classes {taken} already have an adapter: register each class once.")
    _ADAPTERS.update(dict.fromkeys(adapter.classes, adapter))
    if matches is not None:
        _GENERIC.append((matches, adapter))


def supported_classes() -> list[str]:
    """Names of the model classes that need no `blocks=`."""
    return sorted(_ADAPTERS)


def find_adapter(model: nn.Module, blocks: Sequence[str] | None = None) -> Adapter:
    """The adapter of a model, by the names of its class and base classes, or by the `blocks` patterns a user gave.

    Raises:
        UnitError: The class is unknown and no blocks are named, or `blocks` is one string instead of a list.
    """
    if isinstance(blocks, str):
        raise UnitError(f"blocks={blocks!r} is one string: give a list of patterns, blocks=[{blocks!r}].")
    fitting = [adapter for matches, adapter in _GENERIC if matches(model)]
    known = by_class(model, _ADAPTERS) or next(iter(fitting), None)
    if blocks is not None:
        _, default = _GENERIC[0]
        return replace(known or default, classes=(), layout=partial(layout_from_patterns, patterns=tuple(blocks)))
    if known is None:
        raise UnitError(
            f"{type(model).__name__} is not a known model class; known are {supported_classes()}, every denoiser of "
            f"Diffusers that declares its blocks, and every vision transformer of timm. {how_to_name_blocks(model)}"
        )
    return known


def by_class(model: nn.Module, table: Mapping[str, Any]) -> Any:
    """The entry of `table` for the model's class or the nearest base class that it names, or None."""
    return next((table[name] for name in class_names(model) if name in table), None)


def class_names(thing: object) -> list[str]:
    """Names of a thing's class and of its base classes, the nearest first."""
    return [cls.__name__ for cls in type(thing).__mro__]


def how_to_name_blocks(model: nn.Module) -> str:
    """A sentence that shows how `blocks=` would name the lists of modules that `model` has."""
    lists = [f"{name}.*" for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and name]
    hint = f"blocks={lists[:4]}" if lists else 'blocks=["layers.*"]'
    return f"Name its repeated blocks in forward order, for example GrowthScheduler(model, config, {hint})."
