"""A training run of a plan, driven as a loop of a user's drives the library, and the memory of its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.search.recorded_calls import output_tensor, tensors_in
from autoprog_diffusion.tasks.lora import LoraSettings, add_lora
from autoprog_diffusion.training.optimizers import OPTIMIZERS, Settings
from autoprog_diffusion.training.trained_dtype import store_in_bfloat16

from .device import NAME
from .settings import Plan
from .tracker import Kind, MemoryTracker


@dataclass(frozen=True)
class StagePeak:
    """A stage of a run, in bytes.

    Attributes:
        stage: Its index.
        blocks: How many blocks train.
        trained: How many parameters train.
        peak: The most that the device held.
        split: What that was, by kind.
        host: The most that the host held.
    """

    stage: int
    blocks: int
    trained: int
    peak: int
    split: dict[str, int]
    host: int


class Run:
    """A model under a plan, with its optimizer, in its first stage.

    Args:
        plan: What is trained, and how it is held.
        build: Makes the model, on the current default device.
        inputs: Keyword arguments of one forward pass, of the model's configuration.
        device: The training device.
    """

    def __init__(
        self, plan: Plan, build: Callable[[], nn.Module], inputs: Callable[[Any], dict[str, Any]], device: torch.device
    ) -> None:
        self.plan = plan
        self.device = device
        config = GrowthConfig(**plan.growth)
        with device:
            self.model: Any = build().train()
            self.inputs = inputs(self.model.config)
            if plan.lora is not None:
                add_lora(self.model, LoraSettings(rank=plan.lora), seed=0)
            if plan.trained_dtype == "bfloat16":
                store_in_bfloat16(self.model)
            self.growth = GrowthScheduler(self.model, config)
        self.optimizer = make_optimizer(plan, self.growth, device)
        self.growth.prepare(self.model, num_training_steps=config.num_stages, optimizer=self.optimizer)
        if plan.step_in_backward:
            self.growth.step_in_backward(self.optimizer, max_norm=1.0)

    def forward(self) -> Tensor:
        """A loss of one image, (): the mean square of what the model returns."""
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.plan.autocast else nullcontext()
        with autocast:
            output = output_tensor(self.model(**self.inputs, return_dict=False))
        return output.float().square().mean()

    def trained(self) -> list[nn.Parameter]:
        """The parameters that train now."""
        return [parameter for parameter in self.growth.parameters() if parameter.requires_grad]

    def weights(self) -> list[Tensor]:
        """Everything that a step may read: parameters, buffers, the stage embedding, and frozen weights held small."""
        layers = [getattr(vars(module).get("forward"), "__self__", None) for module in self.model.modules()]
        stored = [value for layer in layers if layer is not None for value in vars(layer).values()]
        held = [value for value in stored if isinstance(value, Tensor)]
        return [*self.growth.parameters(), *self.model.buffers(), *held]

    def state(self) -> list[Tensor]:
        """The optimizer's state."""
        return tensors_in([dict(state) for state in self.optimizer.state.values()])


def make_optimizer(plan: Plan, growth: GrowthScheduler, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of a plan.

    On a CUDA device PyTorch steps all parameters at once (`foreach`), which takes memory; it recognises no fake
    tensors, so it is told.
    """
    seed = 0 if plan.trained_dtype == "bfloat16" else None
    optimizer = OPTIMIZERS[plan.optimizer](growth.parameters(), Settings(lr=1e-4, seed=seed))
    if device.type == NAME:
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = True
    return optimizer


class NoTracker:
    """In place of a tracker where nothing is followed."""

    def during(self, kind: Kind) -> AbstractContextManager[None]:
        return nullcontext()

    def label(self, kind: Kind, tensors: Iterable[Any]) -> None:
        """Nothing is kept."""


def train_step(run: Run, tracker: MemoryTracker | NoTracker, look: Callable[[], None] = lambda: None) -> None:
    """A training step that tells the tracker what it makes.

    Args:
        run: The run.
        tracker: Follows the memory of the step.
        look: Called after the backward pass, while all gradients are there.
    """
    trained = run.trained()
    handles = [one.register_hook(lambda gradient: tracker.label("gradients", [gradient])) for one in trained]
    with tracker.during("activations"):
        loss = run.forward()
    loss.backward()
    tracker.label("gradients", [one.grad for one in trained])
    for handle in handles:
        handle.remove()
    del loss
    look()
    run.optimizer.step()
    tracker.label("optimizer", run.state())
    run.optimizer.zero_grad()


def make_state(run: Run, tracker: MemoryTracker) -> None:
    """Let the optimizer make the state of what trains, from gradients without a forward pass."""
    for parameter in run.trained():
        parameter.grad = torch.zeros_like(parameter)
        tracker.label("gradients", [parameter.grad])
    run.optimizer.step()
    tracker.label("optimizer", run.state())
    run.optimizer.zero_grad()


def stages(run: Run, tracker: MemoryTracker) -> Iterator[StagePeak]:
    """Train one step of every stage, with the optimizer's state there from its start."""
    growth = run.growth
    device = run.device.type
    tracker.label("activations", tensors_in(run.inputs))
    for index, stage in enumerate(growth.plan.stages):
        if index:
            growth.step()
        tracker.label("weights", run.weights())
        if any(parameter not in run.optimizer.state for parameter in run.trained()):
            make_state(run, tracker)
        # Only now: with the step inside the backward pass, never are all gradients there at once, as they just were.
        tracker.begin()
        train_step(run, tracker)
        peak = tracker.peak(device)
        yield StagePeak(
            stage=index,
            blocks=len(stage.blocks),
            trained=sum(one.numel() for one in run.trained()),
            peak=peak.total,
            split={str(kind): count for kind, count in peak.split.items()},
            host=0 if device == "cpu" else tracker.peak("cpu").total,
        )
