"""Ways to train a model on a machine: every combination that is allowed, and the best that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from autoprog_diffusion.growth import GrowthConfig
from autoprog_diffusion.growth.choices import FrozenDtype
from autoprog_diffusion.growth.fixed import fixed_plan
from autoprog_diffusion.growth.plan import Stage

from .machine import Calibration
from .memory import stage_memory
from .profile import RANK, Profile
from .quality import Quality, quality_of
from .settings import Plan
from .sizes import LOW_BIT, is_installed
from .work import Work


STEPS = 1000  # of a run whose length is not given
WINDOWS = (2, 4, 8, 16)
BATCHES = (16, 8, 4, 2, 1)
ONE_STAGE = {"num_stages": 1, "stage_embedding": False}
# Of those that lose and cost the same, the first one that fits is proposed.
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "adamw4bit")
SAVES: dict[str, tuple[FrozenDtype | None, ...]] = {
    "full": (None,),
    "freeze": (None, "bfloat16"),
    "window": ("bfloat16", "float8", "int8", "nf4"),
    "LoRA": (None, "bfloat16", "float8", "int8", "nf4"),
}


@dataclass(frozen=True)
class Cost:
    """Of an optimizer step.

    Attributes:
        flops: Forward, backward, and what is computed again.
        seconds: Its time; None where no speed is known.
    """

    flops: float
    seconds: float | None

    def of_image(self, batch: int) -> float:
        """The cost of an image, in seconds if they are known."""
        return (self.flops if self.seconds is None else self.seconds) / batch


@dataclass(frozen=True)
class Candidate:
    """A way to train a model, and what it takes.

    Attributes:
        trained: What trains: full, freeze, `window N`, LoRA.
        plan: Its settings.
        batch: Images of a forward pass.
        stages: Of a run.
        peak: Most bytes of a step of any stage.
        split: That, by kind.
        host: Bytes that wait in CPU memory.
        cost: Of a step on average.
        quality: What it loses.
    """

    trained: str
    plan: Plan
    batch: int
    stages: tuple[Stage, ...]
    peak: int
    split: dict[str, int]
    host: int
    cost: Cost
    quality: Quality

    @property
    def family(self) -> str:
        """Full, freeze, window or LoRA."""
        return self.trained.split()[0]


class Estimator:
    """Computes candidates from the profile of a model.

    Args:
        profile: Of the model.
        calibration: How fast the machine is, if that is known.
        steps: Optimizer steps of the run.
    """

    def __init__(self, profile: Profile, calibration: Calibration | None, steps: int = STEPS) -> None:
        self._profile = profile
        self.calibration = calibration
        self.steps = steps
        self._stages: dict[str, tuple[Stage, ...]] = {}
        self._works: dict[Any, Work] = {}

    def candidate(self, trained: str, plan: Plan, batch: int) -> Candidate:
        """What a way to train takes.

        Args:
            trained: Its name in the table of qualities.
            plan: Its settings.
            batch: Images of a forward pass.
        """
        stages = self.stages(trained, plan)
        measured = [stage_memory(self._profile, plan, stage.blocks, batch) for stage in stages]
        worst = max(measured, key=lambda one: one["peak"])
        return Candidate(
            trained=trained,
            plan=plan,
            batch=batch,
            stages=stages,
            peak=worst["peak"],
            split=worst["split"],
            host=max(one["host"] for one in measured),
            cost=self.cost(trained, plan, batch),
            quality=quality_of(plan, trained),
        )

    def cost(self, trained: str, plan: Plan, batch: int) -> Cost:
        """What a step of a way to train costs on average over the run."""
        stages = self.stages(trained, plan)
        ends = [*(stage.start for stage in stages[1:]), self.steps]
        flops = 0.0
        seconds = 0.0
        for stage, end in zip(stages, ends):
            share = (end - stage.start) / self.steps
            work = self.work(plan, stage.blocks, batch)
            flops += share * work.flops
            if self.calibration is not None:
                seconds += share * self.calibration.seconds(
                    work,
                    self.trained(plan, stage.blocks),
                )
        return Cost(
            flops,
            None if self.calibration is None else seconds,
        )

    def fits(self, trained: str, plan: Plan, batch: int, limit: float) -> bool:
        """Whether every stage takes at most `limit` bytes."""
        stages = sorted(
            self.stages(trained, plan),
            key=lambda stage: self.trained(plan, stage.blocks),
            reverse=True,
        )
        return all(stage_memory(self._profile, plan, stage.blocks, batch)["peak"] <= limit for stage in stages)

    def stages(self, trained: str, plan: Plan) -> tuple[Stage, ...]:
        """The stages of a plan."""
        if trained not in self._stages:
            keys = ("direction", "num_stages", "stage_embedding")
            config = GrowthConfig(**{key: plan.growth[key] for key in keys if key in plan.growth})
            self._stages[trained] = self.stages_of(config)
        return self._stages[trained]

    def stages_of(self, config: GrowthConfig) -> tuple[Stage, ...]:
        """The stages of a configuration."""
        return fixed_plan(
            config,
            len(self._profile.names),
            self.steps,
            self._profile.block_sizes,
        ).stages

    def work(self, plan: Plan, blocks: Sequence[int], batch: int) -> Work:
        """What a step of a stage costs, from that of every unit."""
        again = plan.growth.get("checkpointing") == "all"
        key = (plan.lora, again, tuple(blocks))
        if key not in self._works:
            self._works[key] = self._work(plan, blocks, again=again)
        return self._works[key].of_batch(batch)

    def _work(self, plan: Plan, blocks: Sequence[int], *, again: bool) -> Work:
        """The same of one image."""
        full = self._profile.full
        live = self._profile.lora[0] if plan.lora and self._profile.lora else self._profile.live
        trained = set() if plan.lora else {*self._units(blocks)}
        first = min(trained, default=0)
        total = Work()
        for index, segment in enumerate(full.forward):
            trace = full if segment.unit in trained else live
            total += trace.forward[index].work
            if segment.unit >= first:
                total += trace.backward[index].work
                if again and segment.part:
                    total += trace.forward[index].work
        return total

    def _units(self, blocks: Sequence[int]) -> list[int]:
        """Indices of the units that train with some blocks."""
        inputs = [0] if 0 in blocks else []
        return [*inputs, *(block + 1 for block in blocks), len(self._profile.sizes) - 1]

    def trained(self, plan: Plan, blocks: Sequence[int]) -> int:
        """Number of parameters that train in a stage."""
        profile = self._profile
        if plan.lora and profile.lora:
            return sum(size.numel for size in profile.lora[1])
        units = self._units(blocks)
        return round(sum(profile.unit_sum(unit, "numel", lambda size: size.numel) for unit in units))


def settings(profile: Profile) -> Iterator[tuple[str, Plan]]:
    """Every way to train that is searched: its name, and its settings.

    Args:
        profile: Of the model: windows need as many blocks, LoRA a class that takes adapters.
    """
    recomputed = (None, "all") if profile.can_recompute else (None,)
    for trained, growth in ways(profile):
        family = trained.split()[0]
        for dtype, again in product(SAVES[family], recomputed):
            if dtype is not None and not is_installed(dtype):
                continue
            whole = {**growth}
            if dtype is not None:
                whole["frozen_dtype"] = dtype
            if again is not None:
                whole["checkpointing"] = again
            yield from ((trained, plan) for plan in with_optimizers(whole, family))


def ways(profile: Profile) -> Iterator[tuple[str, dict[str, Any]]]:
    """What may train, and the settings of growth that say so."""
    yield "full", ONE_STAGE
    yield "freeze", {}
    if profile.lora is not None:
        yield "LoRA", ONE_STAGE
    for count in WINDOWS:
        if count <= len(profile.names):
            yield f"window {count}", {"direction": "window", "num_stages": count}


def with_optimizers(growth: dict[str, Any], family: str) -> Iterator[Plan]:
    """Settings of growth with every optimizer that goes with them."""
    if family == "LoRA":
        yield Plan("", growth, lora=RANK)
        return
    for optimizer, in_backward in product(OPTIMIZERS, (False, True)):
        for dtype in ("float32", "bfloat16") if optimizer in LOW_BIT else ("float32",):
            yield Plan("", growth, optimizer, trained_dtype=dtype, step_in_backward=in_backward)


def search(profile: Profile, estimator: Estimator, limit: float, batches: Sequence[int]) -> list[Candidate]:
    """The best candidate of every family that fits, the best first.

    Args:
        profile: Of the model.
        estimator: Computes them.
        limit: Bytes that a step may take.
        batches: Images of a forward pass that are allowed, from the largest on.
    """
    families: dict[str, list[tuple[Any, str, Plan, int]]] = {}
    for trained, plan in settings(profile):
        for batch in batches:
            cost = estimator.cost(trained, plan, batch).of_image(batch)
            order = (*quality_of(plan, trained).order, cost)
            families.setdefault(trained.split()[0], []).append((order, trained, plan, batch))
    best = []
    for tried in families.values():
        tried.sort(key=lambda one: one[0])
        too_large: set[int] = set()  # plans of which not even a single image fits
        for order, trained, plan, batch in tried:
            if id(plan) in too_large:
                continue
            if estimator.fits(trained, plan, batch, limit):
                best.append((order, estimator.candidate(trained, plan, batch)))
                break
            if batch == min(batches) or not estimator.fits(
                trained,
                plan,
                min(batches),
                limit,
            ):
                too_large.add(id(plan))
    return [candidate for _, candidate in sorted(best, key=lambda one: one[0])]


def in_backward(profile: Profile, estimator: Estimator, limit: float, batches: Sequence[int]) -> Candidate | None:
    """Full fine-tuning by 8-bit Adam inside the backward pass, at the largest batch that fits; None where none does.

    Args:
        profile: Of the model.
        estimator: Computes them.
        limit: Bytes that a step may take.
        batches: Images of a forward pass that are allowed, from the largest on.
    """
    recomputed = ({}, {"checkpointing": "all"}) if profile.can_recompute else ({},)
    for batch in batches:
        for again in recomputed:
            plan = Plan("", {**ONE_STAGE, **again}, "adamw8bit", step_in_backward=True)
            if estimator.fits("full", plan, batch, limit):
                return estimator.candidate("full", plan, batch)
    return None


def smallest(profile: Profile, estimator: Estimator) -> Candidate:
    """The candidate that takes least memory."""
    found = [estimator.candidate(trained, plan, 1) for trained, plan in settings(profile)]
    return min(found, key=lambda one: one.peak)
