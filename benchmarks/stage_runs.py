"""A run of a few steps in every stage, whose stages are those of a long run: for what each stage takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.fixed import fixed_plan
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.units import block_sizes
from autoprog_diffusion.search.recorded_calls import output_tensor


RUN = 1000  # steps of the run whose stages are weighed
FULL = {"num_stages": 1, "stage_embedding": False}


@dataclass
class StagedRun:
    """A model in training.

    Attributes:
        model: The denoiser.
        inputs: Keyword arguments of a forward pass.
        growth: In its first stage.
        optimizer: Of all that may train.
        shares: Of a long run that each stage lasts.
        autocast: Whether forward passes run under bfloat16 autocast.
    """

    model: Any
    inputs: dict[str, Any]
    growth: GrowthScheduler
    optimizer: torch.optim.Optimizer
    shares: list[float]
    autocast: bool = False

    def step(self) -> None:
        """A training step, without `growth.step()`."""
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            output = output_tensor(self.model(**self.inputs, return_dict=False))
        output.float().square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def staged_run(
    model: Any,
    inputs: dict[str, Any],
    config: GrowthConfig,
    *,
    steps: int,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    autocast: bool = False,
) -> StagedRun:
    """A model that is ready to train so many steps in every stage.

    Args:
        model: The denoiser, on its device and in training mode.
        inputs: Keyword arguments of a forward pass.
        config: Of growth.
        steps: Of every stage.
        make_optimizer: From the parameters.
        autocast: As the attribute.
    """
    layout = GrowthScheduler(model, config).layout
    long = fixed_plan(config, len(layout.blocks), RUN, block_sizes(model, layout))
    count = len(long.stages)
    if count < config.num_stages:  # stages that share their blocks were merged
        config = replace(config, num_stages=count, boundaries=None)
    stages = [replace(stage, start=index * steps) for index, stage in enumerate(long.stages)]
    plan = GrowthPlan(long.num_blocks, count * steps, tuple(stages))
    growth = GrowthScheduler(model, config)
    optimizer = make_optimizer(growth.parameters())
    growth.prepare(model, num_training_steps=plan.num_training_steps, optimizer=optimizer, plan=plan)
    ends = [*(stage.start for stage in long.stages[1:]), RUN]
    shares = [(end - stage.start) / RUN for stage, end in zip(long.stages, ends, strict=True)]
    return StagedRun(
        model=model,
        inputs=inputs,
        growth=growth,
        optimizer=optimizer,
        shares=shares,
        autocast=autocast,
    )
