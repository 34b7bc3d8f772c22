"""State of the optimizers while stages come and go: dropped where a block closes, or kept until it opens again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .backends.fsdp2 import is_sharded
from .bare import bare
from .choices import WindowState
from .errors import OrderError
from .optimizer_offload import beside, is_offloaded
from .plan import GrowthPlan
from .units import Layout, trainable_names


Values = dict[str, Any]  # the state of one parameter in its optimizer: moments, number of steps


class OptimizerStates:
    """Takes a block's state out of the optimizers where it closes, and puts a parked one back where it opens.

    Parked state is kept here, in CPU memory, and not in the optimizer: a checkpoint's would come back to the device
    as a whole. It travels in the growth object's own state.

    Args:
        layout: The model's units.
        keeping: `release` drops the state of every block that closes, `park` keeps that of blocks that open again.
    """

    def __init__(self, layout: Layout, keeping: WindowState) -> None:
        self._layout = layout
        self._parks = keeping == "park"
        self._parked: dict[str, Values] = {}

    def check(self, plan: GrowthPlan, optimizers: Iterable[Any], accelerator: Any, model: nn.Module) -> None:
        """Check that the state of a block that closes can be dropped from its optimizer, or parked.

        Args:
            plan: The plan that is followed.
            optimizers: Those known by now.
            accelerator: The loop's, if there is one.
            model: The bare model.

        Raises:
            OrderError: Blocks freeze, and no optimizer is known; or state is to be parked, and parameters are sharded.
        """
        if not plan.freezes:
            return
        if accelerator is None and not list(optimizers):
            raise OrderError(
                'a plan that freezes blocks (direction="freeze" or "window") frees their optimizer state: pass the '
                "optimizer, growth.prepare(model, num_training_steps=..., optimizer=optimizer)."
            )
        if self._parks and plan.opens and is_sharded(model):
            raise OrderError(
                'window_state="park" does not work on sharded parameters, whose state lies on all ranks: use '
                'window_state="release".'
            )

    def close(
        self, plan: GrowthPlan, stage: int, optimizers: Iterable[Any], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take the state of all that a stage does not train out of the optimizers.

        Args:
            plan: The plan that is followed.
            stage: Index of the stage that begins.
            optimizers: Those of the run, bare or wrapped by Accelerate.
            parameters: Of the model, by name.
        """
        if not plan.freezes:
            return
        trains = trainable_names(self._layout, plan.stages[stage].blocks)
        later = {block for coming in plan.stages[stage + 1 :] for block in coming.blocks}
        returns = trainable_names(self._layout, later) if self._parks else set()
        for optimizer in map(bare, optimizers):
            for name in self._layout.names - trains:
                values = optimizer.state.pop(parameters[name], None)
                if values and name in returns:
                    self._parked[name] = {key: _on_cpu(value) for key, value in values.items()}
        self._parked = {name: values for name, values in self._parked.items() if name in returns | trains}

    def open(self, optimizers: Iterable[Any], parameters: Mapping[str, nn.Parameter]) -> None:
        """Put the parked state of all that trains now back into the optimizer that holds it.

        Args:
            optimizers: Those of the run, bare or wrapped by Accelerate.
            parameters: Of the model, by name.
        """
        if not self._parked:
            return
        for optimizer in map(bare, optimizers):
            groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
            for name in list(self._parked):
                parameter = parameters[name]
                if parameter.requires_grad and parameter in groups:
                    values = self._parked.pop(name)
                    away = is_offloaded(optimizer)
                    optimizer.state[parameter] = values if away else beside(values, parameter, groups[parameter])

    def state_dict(self) -> dict[str, Values]:
        """Parked state by the parameters' names, on the CPU; the same tensors, as in an optimizer's."""
        return {name: dict(values) for name, values in self._parked.items()}

    def load_state_dict(self, state: Mapping[str, Values]) -> None:
        """Park what `state_dict` gave; a run that parks nothing takes nothing."""
        self._parked = {name: dict(values) for name, values in state.items()} if self._parks else {}


def _on_cpu(value: Any) -> Any:
    """A value of an optimizer's state in CPU memory; pinning it would pay only if it moved more than once a stage."""
    return value.to("cpu") if isinstance(value, Tensor) else value
