"""`SavedWeights`: the weights that a run would leave if it ended now, put in place for a moment, and taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.evaluation.held_out import averaged
from autoprog_diffusion.growth.backends.fsdp2 import is_sharded, reshard
from autoprog_diffusion.growth.power_average import PowerAverage

from .sharded_state import local_parameters, parameters_now


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler


class SavedWeights:
    """The weights of a model as they are saved: averaged where there is an average, the stage embedding folded in.

    Args:
        model: Bare.
        wrapped: As `accelerator.prepare` returned it.
        growth: Of the model, prepared.
        average: An `EMAModel` of the parameters that train, a `PowerAverage`, or None.
        names: Of the parameters that train in some stage, in the order of the average.
        complete: Whether these are all, so that the whole model is saved.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        growth: GrowthScheduler,
        average: Any,
        *,
        names: Sequence[str],
        complete: bool,
    ) -> None:
        self._model = model
        self._wrapped = wrapped
        self._growth = growth
        self._average = average
        self._names = tuple(names)
        self._complete = complete

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model holds them; training goes on with its own weights, bit for bit."""
        reshard(self._model)
        trained = list(parameters_now(self._model, self._names).values())
        with ExitStack() as stack:
            # A frozen base that is not saved stays small.
            stack.enter_context(self._growth.exact_weights(None if self._complete else trained))
            if self._average is not None:
                own = trained if isinstance(self._average, PowerAverage) else local_parameters(trained)
                stack.enter_context(averaged(self._average, own))
            stack.enter_context(self._growth.folded(self._wrapped))
            yield
            reshard(self._model)

    def taken(self) -> dict[str, Tensor]:
        """Name -> tensor on the CPU, while they are in place; under FSDP all processes call it, one gets them."""
        if is_sharded(self._model):
            return self._gathered()
        averages = {}
        if self._average is not None:
            averages = averages_of(self._average, self._names)
        taken = {}
        for name, parameter in self._model.named_parameters():
            if not self._complete and name not in self._names:
                continue
            value = parameter.detach()
            if name in self._names and value.dtype == torch.bfloat16:
                # The average is in float32, and is saved so.
                value = averages.get(name, value).float()
            taken[name] = value.cpu().contiguous()
        return taken

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Give them back to the model after `growth.fold`; under FSDP all processes call it, one with weights."""
        if is_sharded(self._model):
            self._distribute(dict(weights))
            return
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])

    def _gathered(self) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(self._model, options=options)
        known = set(self._names) if not self._complete else whole.keys()
        taken: dict[str, Any] = {name: value for name, value in whole.items() if name in known}
        return taken

    def _distribute(self, weights: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(self._model, weights, options=options)


def averages_of(average: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Name -> average of a parameter.

    Args:
        average: An `EMAModel` of the parameters that train, or a `PowerAverage`.
        names: Of these parameters, in their order.
    """
    if isinstance(average, PowerAverage):
        return average.averages
    return dict(zip(names, average.shadow_params))
