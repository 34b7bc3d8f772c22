"""The adapter protocol: what a model family must say about itself so that it can grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .config import GrowthConfig
from .errors import UnitError
from .units import Layout, layout_from_patterns


class StageEmbeddingLike(Protocol):
    """What the scheduler needs of a stage embedding; `adapters.stage_embedding.StageEmbedding` is the one we ship."""

    table: nn.Parameter
    stage: int

    def attach(self, model: nn.Module) -> None: ...
    def detach(self) -> None: ...
    def enter(self, stage: int, fresh: bool = True) -> None: ...
    def update_average(self, step: int) -> None: ...
    def fold(self, model: nn.Module) -> None: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state_dict: dict[str, Tensor]) -> object: ...


@dataclass(frozen=True)
class Adapter:
    """One model family.

    Attributes:
        name: Of the family, for messages.
        classes: Names of the model classes it covers; by name, so that no adapter imports its host.
        layout: Cuts a model into units.
        stage_embedding: Builds the stage embedding of a model; raises `UnitError` where there is no place for one.
    """

    name: str
    classes: tuple[str, ...]
    layout: Callable[[nn.Module], Layout]
    stage_embedding: Callable[[nn.Module, GrowthConfig], StageEmbeddingLike]


_ADAPTERS: dict[str, Adapter] = {}
_FALLBACK: list[Adapter] = []


def register_adapter(adapter: Adapter, *, fallback: bool = False) -> None:
    """Make a family known. The `fallback` family serves models whose blocks the user names.

    Raises:
        UnitError: One of its classes is registered already.
    """
    taken = sorted(set(adapter.classes) & set(_ADAPTERS))
    if taken:
        raise UnitError(f"classes {taken} already have an adapter: register each class once.")
    _ADAPTERS.update(dict.fromkeys(adapter.classes, adapter))
    if fallback:
        _FALLBACK[:] = [adapter]


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
    known = next((_ADAPTERS[c.__name__] for c in type(model).__mro__ if c.__name__ in _ADAPTERS), None)
    if blocks is not None:
        base = known or _FALLBACK[0]
        patterns = tuple(blocks)
        return Adapter(base.name, (), lambda m: layout_from_patterns(m, patterns), base.stage_embedding)
    if known is None:
        lists = [f"{name}.*" for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and name]
        hint = f"blocks={lists[:4]}" if lists else 'blocks=["layers.*"]'
        raise UnitError(
            f"{type(model).__name__} is not a known model class; known are {supported_classes()}. Name its repeated "
            f"blocks in forward order, for example GrowthScheduler(model, config, {hint})."
        )
    return known
