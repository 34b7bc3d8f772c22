"""Sharded checkpoints: every process writes its shards, and as many or other processes read them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.backends.fsdp2 import is_sharded_tensor, like, local_part, reshard
from autoprog_diffusion.growth.backends.shard_files import read_shards, stored_shards, write_shards
from autoprog_diffusion.growth.errors import StateError

from .sharded import is_sharding


if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

FOLDER = "sharded"
MODEL, OPTIMIZER, AVERAGE = "model.", "optimizer.", "average."


class ShardedState:
    """What a checkpoint holds of model, optimizer and average of a sharded run.

    Args:
        model: Sharded.
        optimizer: Of its parameters, without Accelerate's wrapper.
        names: Parameters that train in some stage; the others are not kept, unless all train: then buffers are, too.
        average: Built from the `local_parameters` of `names`, in this order; None without one.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, names: Iterable[str], average: EMAModel | None
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._names = tuple(names)
        self._average = average

    def register(self, accelerator: Any) -> None:
        """Let the accelerator's checkpoints hold it."""

        def save(models: list[Any], weights: list[Any], folder: str) -> None:
            self.save(Path(folder))

        def load(models: list[Any], folder: str) -> None:
            self.load(Path(folder))

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)

    def save(self, folder: Path) -> None:
        """Write the shards of this process to `folder/sharded`; all processes must call it.

        Raises:
            StateError: The optimizer keeps something that cannot be cut as its parameters are.
        """
        write_shards(folder / FOLDER, self._weights() | self._moments())

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on any number of processes; all must call it.

        Raises:
            StateError: It holds other tensors than this run has.
        """
        path = folder / FOLDER
        stored = stored_shards(path)
        weights = self._weights()
        differing = weights.keys() ^ {key for key in stored if not key.startswith(OPTIMIZER)}
        if differing:
            raise StateError(
                f"{folder} and this run differ in {len(differing)} tensors, for example {min(differing)}: resume with "
                "the settings that the checkpoint was made with."
            )
        moments = self._room_for_moments(stored)
        tensors = weights | {f"{OPTIMIZER}{name}/{key}": value for (name, key), value in moments.items()}
        read_shards(path, tensors)
        self._take_averages(weights)
        self._take_moments(moments)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return parameters_now(self._model)

    def _weights(self) -> dict[str, Tensor]:
        """Weights and averages as they lie in memory: what is read into them is loaded."""
        parameters = self._parameters()
        state = self._model.state_dict()
        kept = state.keys() if len(self._names) == len(parameters) else self._names
        weights = {f"{MODEL}{name}": state[name] for name in kept}
        if self._average is not None:
            for name, shadow in zip(self._names, self._average.shadow_params):
                weights[f"{AVERAGE}{name}"] = like(parameters[name], shadow)
        return weights

    def _moments(self) -> dict[str, Tensor]:
        """The optimizer's state."""
        tensors = {}
        for name, parameter in self._parameters().items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor) or (value.dim() and not is_sharded_tensor(value)):
                    raise StateError(
                        f"{type(self._optimizer).__name__} keeps {key} of {name} as a {type(value).__name__} that is "
                        "not cut as the parameter is, which sharded checkpoints cannot hold: use AdamW."
                    )
                tensors[f"{OPTIMIZER}{name}/{key}"] = value
        return tensors

    def _room_for_moments(self, stored: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """Empty tensors for the optimizer's state that a checkpoint holds, by parameter and key."""
        parameters = self._parameters()
        room = {}
        for entry, kind in stored.items():
            if not entry.startswith(OPTIMIZER):
                continue
            name, _, key = entry.removeprefix(OPTIMIZER).rpartition("/")
            parameter = parameters.get(name)
            if parameter is None:
                raise StateError(f"the checkpoint holds the optimizer's state of {name}, which this model lacks.")
            whole = kind.shape == parameter.shape
            room[name, key] = torch.zeros_like(parameter.detach() if whole else torch.empty(()), dtype=kind.dtype)
        return room

    def _take_averages(self, weights: dict[str, Tensor]) -> None:
        if self._average is not None:
            for name, shadow in zip(self._names, self._average.shadow_params):
                shadow.copy_(local_part(weights[f"{AVERAGE}{name}"]))

    def _take_moments(self, moments: dict[tuple[str, str], Tensor]) -> None:
        order = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        places = {parameter: index for index, parameter in enumerate(order)}
        parameters = self._parameters()
        state: dict[int, dict[str, Tensor]] = {}
        for (name, key), value in moments.items():
            state.setdefault(places[parameters[name]], {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})


class AverageSettings:
    """An `EMAModel` without its tensors, for `accelerator.register_for_checkpointing`.

    Args:
        average: Whose counters are kept; its tensors are in the shards.
    """

    def __init__(self, average: EMAModel) -> None:
        self._average = average

    def state_dict(self) -> dict[str, Any]:
        state = self._average.state_dict()
        del state["shadow_params"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._average.load_state_dict(state)


def local_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """What this process holds of parameters, as plain ones over the same memory; those that are whole as they are."""
    return [
        nn.Parameter(local_part(each.detach()), each.requires_grad) if is_sharded_tensor(each) else each
        for each in parameters
    ]


def parameters_now(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """A model's parameters by name, those that are sharded as shards: other objects than before it was sharded.

    Args:
        model: Bare.
        names: Of those that are wanted, in this order; None for all.
    """
    reshard(model)
    parameters = dict(model.named_parameters())
    return parameters if names is None else {name: parameters[name] for name in names}


def holds_shards(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by a sharded run."""
    return (checkpoint / FOLDER).is_dir()


@contextmanager
def models_apart(accelerator: Any) -> Iterator[None]:
    """Inside, Accelerate saves and loads all but model and optimizer of a sharded run, which `ShardedState` does."""
    kept = accelerator._models, accelerator._optimizers
    if is_sharding(accelerator):
        accelerator._models, accelerator._optimizers = [], []
    try:
        yield
    finally:
        accelerator._models, accelerator._optimizers = kept
