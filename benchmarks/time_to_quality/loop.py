"""The loop that every method of the time-to-quality benchmark runs in, and its clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from cases import Subject
from methods import Method
from torch import Tensor, nn

from autoprog_diffusion.growth import GrowthScheduler
from autoprog_diffusion.growth.power_average import PowerAverage
from autoprog_diffusion.growth.power_function import relative_width
from autoprog_diffusion.training.measure import counted_flops
from autoprog_diffusion.training.optimizers import OPTIMIZERS, Settings
from autoprog_diffusion.training.trained_dtype import store_in_bfloat16, store_in_float32


WARMUP = 0.05  # of the run
POINTS = (0.125, 0.3, 0.5, 0.7, 0.85, 1.0)  # of the run, where it is evaluated; the curve is steep at both ends
FP32 = 4


@dataclass
class Clock:
    """What training has cost so far; evaluations, caches and FLOP counts do not run on it.

    Attributes:
        cpu: Seconds of CPU time of the process (one thread), of training steps and searches.
        wall: The same as wall time; the machine is shared.
        flops: Forward and backward passes, counted once per set of trained blocks and resolution; a search counts as
            many as the whole model trains in the CPU time that the search took.
        bytes: Float32 gradients that data parallelism would all-reduce.
        images: Images trained on.
    """

    cpu: float = 0.0
    wall: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    images: int = 0


@dataclass
class Run:
    """What one run leaves.

    Attributes:
        curve: At every evaluation the step, the clock and the held-out loss.
        stages: Per stage its first step, trained share, resolution, batch, FLOPs and median CPU seconds of a step.
        search_cpu: CPU seconds of all searches.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    search_cpu: float = 0.0


def rate_factor(step: int, steps: int, *, decays: bool = True) -> float:
    """Linear warm-up over the first 5 %, then a cosine down to 0, or a constant rate."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    if not decays:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def batches(count: int, seed: int) -> Iterator[int]:
    """Row numbers, epoch after epoch in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def make_optimizer(method: Method, parameters: Any, rate: float, seed: int) -> torch.optim.Optimizer:
    """The optimizer of a method; bfloat16 weights are rounded by the seed."""
    if method.optimizer == "fused":
        return torch.optim.AdamW(parameters, lr=rate, fused=True)
    rounding = seed if method.trained_dtype == "bfloat16" else None
    return OPTIMIZERS[method.optimizer](parameters, Settings(lr=rate, seed=rounding))


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Every weight widened to float32, so that all methods are evaluated in one precision."""
    narrow = [(parameter, parameter.data) for parameter in model.parameters() if parameter.dtype == torch.bfloat16]
    store_in_float32(parameter for parameter, _ in narrow)
    yield
    for parameter, values in narrow:
        parameter.data = values


class Loop:
    """One run of one method.

    Args:
        subject: The model, freshly loaded.
        method: How it is trained.
        rate: Peak learning rate.
        steps: Optimizer steps.
        batch: Images per step at full resolution.
        seed: Of everything random.
    """

    def __init__(self, subject: Subject, method: Method, *, rate: float, steps: int, batch: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.subject = subject
        self.method = method
        self.steps = steps
        self.batch = batch
        self.seed = seed
        model = subject.denoiser
        model.requires_grad_(True)
        method.adapt(subject, seed)
        if method.trained_dtype == "bfloat16":
            store_in_bfloat16(model)
        config = method.config(subject.multiple)
        self.growth = GrowthScheduler(model, config)
        layout = self.growth.layout
        plan = None if method.plan is None else method.plan(len(layout.blocks), steps, seed)
        groups = self.growth.parameter_groups() if config.rewarm_steps else list(self.growth.parameters())
        self.optimizer = make_optimizer(method, groups, rate, seed)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate_factor(step, steps, decays=method.decays)
        )
        self.growth.prepare(model, num_training_steps=steps, plan=plan, optimizer=self.optimizer)
        self.average = None
        if method.exponent is not None:
            self.average = PowerAverage(
                model,
                growth=self.growth,
                widths=[relative_width(method.exponent)],
                freeze_at_average=method.freeze_at_average,
            )
        self.rows = batches(subject.count, seed)
        self.clock = Clock()
        self.run = Run()
        self._flops: dict[Any, float] = {}
        self._times: list[list[float]] = []
        self._full_speed = 0.0

    def train(self, repeats: int, points: Sequence[float] = POINTS) -> Run:
        """Train to the end.

        Args:
            repeats: Draws of noise per held-out image in an evaluation.
            points: Where to evaluate, as fractions of the run; 1 is after the last step.
        """
        due = {round(self.steps * point) for point in points}
        self._evaluate(0, repeats)
        self._enter()
        for step in range(self.steps):
            self._step(step)
            if step + 1 in due:
                self._evaluate(step + 1, repeats)
        if self.average is not None:
            self.average.copy_to()
        self.growth.fold(self.subject.denoiser)
        store_in_float32(self.subject.denoiser.parameters())
        for stage, times in zip(self.run.stages, self._times):
            stage["cpu_per_step"], stage["steps"] = median(times), len(times)
        return self.run

    def _enter(self) -> None:
        growth = self.growth
        self.subject.task.enter_stage(growth)
        self.subject.denoiser.train()
        stage = {
            "start": len([t for times in self._times for t in times]),
            "blocks": growth.plan.stages[growth.stage].blocks,
        }
        stage |= {"trained": growth.trainable_fraction, "resolution": growth.resolution}
        self.run.stages.append(stage)
        self._times.append([])

    def _size(self) -> int:
        scales = self.method.batch_scales
        return self.batch if scales is None else max(1, round(self.batch * scales[self.growth.stage]))

    def _step(self, step: int) -> None:
        batch = {"index": torch.tensor([next(self.rows) for _ in range(self._size())])}
        flops = self._count(batch)
        cpu, wall = time.process_time(), time.perf_counter()
        loss = self._loss(batch)
        loss.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.step()
        spent = time.process_time() - cpu
        self._times[-1].append(spent)
        searches = len(self.growth.decisions)
        grew = self.growth.step()
        self.clock.cpu += time.process_time() - cpu
        self.clock.wall += time.perf_counter() - wall
        self.clock.flops += flops
        self.clock.bytes += FP32 * sum(p.numel() for p in trained)
        self.clock.images += len(batch["index"])
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"loss {loss.item()} at step {step} of {self.method.name}: lower the rate.")
        if len(self.growth.decisions) > searches:
            search = time.process_time() - cpu - spent
            self.run.search_cpu += search
            self.clock.flops += search * flops / spent
        if grew:
            self._enter()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.method.autocast):
            return self.subject.task.loss(self.subject.denoiser, batch)

    def _count(self, batch: dict[str, Tensor]) -> float:
        trained = tuple(p.requires_grad for p in self.subject.denoiser.parameters())
        key = (trained, self.growth.stage, len(batch["index"]))
        if key not in self._flops:
            self._flops[key] = counted_flops(lambda: self._loss(batch).backward())
            self.optimizer.zero_grad()
            self.run.stages[-1].setdefault("flops_per_step", self._flops[key])
        return self._flops[key]

    def _evaluate(self, step: int, repeats: int) -> None:
        averaged = nullcontext() if self.average is None else self.average.in_place()
        with averaged, in_float32(self.subject.denoiser):
            loss = self.subject.held_out_loss(repeats)
        self.run.curve.append({"step": step, **asdict(self.clock), "held_out_loss": loss})
        self.subject.task.enter_stage(self.growth)
