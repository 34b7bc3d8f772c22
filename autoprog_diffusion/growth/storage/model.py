"""`FrozenStorage`: the layers of a model, each held small while it is frozen."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.ranks import rank
from ..bare import bare
from ..choices import FrozenDtype
from ..units import Layout, modules_in
from .formats import QUANTISED, check_format
from .layer import StoredLayer, can_be_stored


logger = logging.getLogger(__name__)

MEGABYTE = 1e6


class FrozenStorage:
    """Holds the frozen linear and convolution weights of one model small.

    All other parameters (biases, norms, embeddings, tables) stay as they are: they are few, and autocast leaves most
    of them in float32. So does the layer that holds the model's first parameter, since Diffusers takes that one's type
    for the model's. Quantised formats leave the layers outside of the blocks alone, which are the most sensitive ones,
    and of which some models read the weight instead of calling the layer.

    Args:
        model: The bare model.
        layout: Its units.
        dtype: The format; None holds nothing small.

    Raises:
        ConfigError: The format needs a library that is missing.
    """

    def __init__(self, model: nn.Module, layout: Layout, dtype: FrozenDtype | None) -> None:
        check_format(dtype)
        self._layout = layout
        self._model = model
        self._dtype: FrozenDtype | None = dtype
        self._layers: list[StoredLayer] = []
        self._of: dict[nn.Parameter, StoredLayer] = {}
        self._left = 0
        self._hooked: list[Any] = []

    @property
    def active(self) -> bool:
        """Whether anything is held small in some stage."""
        return self._dtype is not None

    def find(self) -> list[StoredLayer]:
        """The layers that can be held small; none without a format."""
        if self._dtype is not None and not self._layers:
            self._find(self._dtype)
        return self._layers

    def prepare(self, optimizers: Iterable[Any]) -> None:
        """Find the layers, and let optimizers load their state in the weights' own types.

        Args:
            optimizers: Those known by now. torch casts a state that it loads to the type of its parameter.
        """
        if self._dtype is None:
            return
        self.find()
        for optimizer in optimizers:
            inner = bare(optimizer)
            if all(inner is not known for known in self._hooked):
                self._hooked.append(inner)
                inner.register_load_state_dict_pre_hook(self._show_true_types)
                inner.register_load_state_dict_post_hook(self._hold)

    def follow(self) -> None:
        """Store the layers that are frozen now, and restore those that train."""
        for layer in self._layers:
            if layer.trains:
                layer.restore()
        for layer in self._layers:
            if not layer.trains:
                layer.store()
        if self._layers and rank() == 0:
            logger.info(self.describe())

    def restore(self, device: torch.device | None = None) -> None:
        """Give every parameter its exact value back, on its own device or on another one."""
        for layer in self._layers:
            layer.restore(device)

    @contextmanager
    def restored(self, parameters: Iterable[nn.Parameter] | None = None) -> Iterator[None]:
        """Exact values inside a `with` block only; what is written into a parameter there does not stay.

        Args:
            parameters: Those that are restored; None for all.
        """
        wanted = self._of.keys() if parameters is None else set(parameters)
        stored = [layer for layer in self._layers if layer.stored and layer.weight in wanted]
        # Copies: on the CPU the restored parameter would be the very tensor.
        exact = [layer.exact().clone() for layer in stored]
        for layer in stored:
            layer.restore()
        try:
            yield
        finally:
            for layer, value in zip(stored, exact):
                layer.weight.data = value.to(layer.weight.device)
                layer.store()

    def exact(self, parameter: nn.Parameter) -> Tensor:
        """The exact value of a parameter of the model, on the device where it trains."""
        layer = self._of.get(parameter)
        if layer is None or not layer.stored:
            return parameter.detach()
        return layer.exact().to(parameter.device)

    def held(self, parameters: Iterable[nn.Parameter]) -> list[Tensor]:
        """What takes the memory of parameters on their devices: quantised weights in their place."""
        return [self._of[each].held if each in self._of else each for each in parameters]

    def describe(self) -> str:
        """How much is held small now, in one line."""
        stored = [layer for layer in self._layers if layer.stored]
        held = sum(layer.bytes for layer in stored)
        whole = sum(layer.whole_bytes for layer in stored)
        return (
            f"{len(stored)} of {len(self._layers)} layers are frozen and held in {self._dtype}: "
            f"{held / MEGABYTE:.1f} MB instead of {whole / MEGABYTE:.1f} MB; {self._left} other layers never are"
        )

    def _find(self, dtype: FrozenDtype) -> None:
        """Collect the layers that can be stored."""
        first = next(iter(self._model.parameters()), None)
        owners = Counter(parameter for module in self._model.modules() for parameter in module._parameters.values())
        read_elsewhere = _weights_that_adapters_read(self._model)
        blocks = {module for unit in self._layout.blocks for module in modules_in(self._model, unit)}
        for module in self._model.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or weight is None:
                continue
            allowed = module in blocks or dtype not in QUANTISED
            alone = weight is not first and owners[weight] == 1 and weight not in read_elsewhere
            if allowed and alone and can_be_stored(module, dtype):
                layer = StoredLayer(module, dtype)
                self._layers.append(layer)
                self._of[weight] = layer
            else:
                self._left += 1

    def _show_true_types(self, *ignored: Any) -> None:
        """Before an optimizer loads its state; a hook."""
        for layer in self._layers:
            layer.show_true_type()

    def _hold(self, *ignored: Any) -> None:
        """After an optimizer has loaded its state; a hook."""
        for layer in self._layers:
            layer.hold()


def _weights_that_adapters_read(model: nn.Module) -> set[nn.Parameter]:
    """Weights of base layers that an adapter looks at itself: DoRA takes their norm."""
    found: set[nn.Parameter] = set()
    for module in model.modules():
        base = getattr(module, "base_layer", None)
        if base is not None and len(getattr(module, "lora_magnitude_vector", ())) > 0:
            found.update(base.parameters())
    return found
