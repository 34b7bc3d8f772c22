"""The whole model of a sharded run, to be saved as a plain one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Whole:
    """A plain copy of a model, without memory until it is filled.

    `fully_shard` changes a model's class and parameters in place; what is saved must be neither.

    Args:
        model: Bare, before it is sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, Any] = {}
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device="meta")
            memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
        self.plain = copy.deepcopy(model, memo)

    def fill(self, model: nn.Module) -> None:
        """Gather the weights of the sharded model, on the CPU of the first process; all processes must call it.

        Args:
            model: The model, sharded by now.
        """
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if weights:  # other processes get none
            self.plain.load_state_dict(weights, assign=True)

    def pipeline(self, pipeline: Any, model: nn.Module) -> Any:
        """A pipeline with the plain copy in the place of the sharded model; other parts are shared.

        Args:
            pipeline: That holds the model.
            model: The model, sharded by now.
        """
        name = next(name for name, part in pipeline.components.items() if part is model)
        plain = copy.copy(pipeline)
        setattr(plain, name, self.plain)
        return plain
