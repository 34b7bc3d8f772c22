"""`plan`: what a run of a model takes on a machine, and how it is trained best there."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from autoprog_diffusion.growth import GrowthConfig

from .candidates import BATCHES, ONE_STAGE, Candidate, Estimator, in_backward, search, smallest
from .command_lines import command_line
from .errors import PlannerError
from .machine import DEFAULT_FILE, Calibration, Machine, find_gpu, memory_machine, steady
from .memory import stage_memory
from .models import ModelSource, find_model, model_source
from .planned import Planned, StagePlan
from .profile import RANK, Profile, StageRequest, latent_side, make_profile
from .settings import Plan
from .shapes import Shape, default_side
from .verdict import judged
from .worker import profile_elsewhere


BEST = 3
VAE_FACTOR = 8


def plan(
    model: str | nn.Module,
    *,
    growth: GrowthConfig | None = None,
    pixels: int | None = None,
    batch: int = 1,
    steps: int = 1000,
    gpu: str | None = None,
    memory_gb: float | None = None,
    tflops: float | None = None,
    calibration: str | Path | None = None,
    in_process: bool = False,
) -> Planned:
    """Plan the training of a model that need not be there: its configuration is enough.

    Args:
        model: A published name (`sdxl`), a config.json, its folder, a pipeline's folder, or a Diffusers denoiser, of
            which only the class and the configuration are read.
        growth: Stages to plan; the default is what the recipes do, `GrowthConfig.for_model`.
        pixels: Side of the images [the model's own].
        batch: Images of a forward pass; a search tries smaller ones, and larger ones if this is 1.
        steps: Optimizer steps of the run.
        gpu: A GPU by its name, to search what fits.
        memory_gb: Memory in 10^9 bytes that a step may take, to search what fits.
        tflops: Speed that training reaches, in 10^12 FLOP/s, in place of a calibration.
        calibration: File that `autoprog-diffusion calibrate` wrote.
        in_process: Follow the model in this process rather than in a new one. That is faster, and only for a process
            that has run no backward pass, and does nothing else afterwards.

    Raises:
        PlannerError: The model or GPU is unknown, the configuration is no denoiser's, a number is impossible, or the
            growth is none that can be planned.
        UnitError: The model's blocks cannot be named.
    """
    check_positive({"pixels": pixels, "batch": batch, "steps": steps})
    machine = find_machine(gpu, memory_gb)
    speed = find_speed(machine, tflops, calibration)
    if growth is not None:
        check_growth(growth)
    source = find_model(model) if isinstance(model, str) else model_source(model)
    size = pixels or own_pixels(source)
    request = exact_stages(growth, steps, batch)
    shape = Shape(side=latent_side(source, size))
    follow = partial(make_profile, parallel=True) if in_process else profile_elsewhere
    profile = follow(source, shape, stages=request)
    estimator = Estimator(profile, speed, steps)
    config = growth or profile.preset
    stages = plan_stages(profile, estimator, config, steps=steps, batch=batch)
    planned = assemble(profile, estimator, stages, pixels=size, batch=batch, machine=machine)
    return judged(planned, config)


def assemble(
    profile: Profile,
    estimator: Estimator,
    stages: tuple[StagePlan, ...],
    *,
    pixels: int,
    batch: int,
    machine: Machine | None,
) -> Planned:
    """The stages of a run, what they are compared with, and what fits a machine.

    Args:
        profile: Of the model.
        estimator: Of the same.
        stages: Of the run.
        pixels: Side of the images.
        batch: Images of a forward pass.
        machine: What is planned for.
    """
    steps = estimator.steps
    source = profile.source
    found = [] if machine is None else fitting(profile, estimator, machine, batch)
    return Planned(
        source=source,
        parameters=profile.parameters,
        blocks=len(profile.names),
        pixels=pixels,
        batch=batch,
        steps=steps,
        machine=machine,
        calibration=estimator.calibration,
        stages=stages,
        others=tuple(compared(profile, estimator, batch)),
        best=tuple((one, command_line(source, one, pixels=pixels, steps=steps)) for one in found),
        least=smallest(profile, estimator) if machine is not None and not found else None,
    )


def fitting(profile: Profile, estimator: Estimator, machine: Machine, batch: int) -> list[Candidate]:
    """The best ways to train that fit a machine, and full fine-tuning with the step in the backward pass if it does.

    Args:
        profile: Of the model.
        estimator: Of the same.
        machine: What is planned for.
        batch: Images of a forward pass.
    """
    batches = tried_batches(batch)
    found = search(profile, estimator, machine.bytes, batches)[:BEST]
    stepping = in_backward(profile, estimator, machine.bytes, batches)
    if stepping is not None and all(one.plan != stepping.plan for one in found):
        found.append(stepping)
    return found


def own_pixels(source: ModelSource) -> int:
    """Side of the images that a model was made for."""
    return source.pixels or default_side(source.cls, source.config) * VAE_FACTOR


def exact_stages(config: GrowthConfig | None, steps: int, batch: int) -> StageRequest | None:
    """The stages whose FLOPs can be counted: those in which nothing is computed again."""
    if config is not None and config.checkpointing not in (None, "none"):
        return None
    return StageRequest(config, steps, batch)


def tried_batches(batch: int) -> tuple[int, ...]:
    """Batches that a search tries, from the largest on.

    Args:
        batch: What is asked for; 1 leaves it to the search.
    """
    if batch == 1:
        return BATCHES
    return (batch, *(one for one in BATCHES if one < batch))


def compared(profile: Profile, estimator: Estimator, batch: int) -> list[Candidate]:
    """Full fine-tuning and, where the class takes adapters, LoRA."""
    found = [estimator.candidate("full", Plan("full", ONE_STAGE), batch)]
    if profile.lora is not None:
        found.append(
            estimator.candidate(
                "LoRA",
                Plan("LoRA", ONE_STAGE, lora=RANK),
                batch,
            )
        )
    return found


def plan_stages(
    profile: Profile, estimator: Estimator, config: GrowthConfig, *, steps: int, batch: int
) -> tuple[StagePlan, ...]:
    """The stages of a run.

    Args:
        profile: Of the model.
        estimator: Of the same.
        config: What trains, and when.
        steps: Optimizer steps of the run.
        batch: Images of a forward pass.
    """
    settings = Plan("", config.to_dict())
    found = []
    stages = estimator.stages_of(config)
    ends = [*(stage.start for stage in stages[1:]), steps]
    for index, (stage, end) in enumerate(zip(stages, ends)):
        exact = index < len(profile.stage_flops)
        work = estimator.work(settings, stage.blocks, batch)
        memory = stage_memory(profile, settings, stage.blocks, batch)
        trained = estimator.trained(settings, stage.blocks)
        speed = estimator.calibration
        found.append(
            StagePlan(
                stage=index,
                start=stage.start,
                steps=end - stage.start,
                blocks=len(stage.blocks),
                trained=trained,
                flops=profile.stage_flops[index] if exact else work.flops,
                exact=exact,
                peak=memory["peak"],
                split=memory["split"],
                seconds=None if speed is None else speed.seconds(work, trained),
            )
        )
    return tuple(found)


def find_machine(gpu: str | None, memory_gb: float | None) -> Machine | None:
    """The machine that is planned for.

    Raises:
        PlannerError: The GPU is unknown, or the memory impossible.
    """
    machine = None if gpu is None else find_gpu(gpu)
    if memory_gb is None:
        return machine
    limited = memory_machine(memory_gb)
    return limited if machine is None else replace(machine, bytes=limited.bytes)


def find_speed(machine: Machine | None, tflops: float | None, path: str | Path | None) -> Calibration | None:
    """How fast the machine is: as given, as measured, or as guessed from the GPU's data sheet.

    Raises:
        PlannerError: The speed is impossible, or the file no calibration.
    """
    if tflops is not None:
        return steady(tflops)
    if path is not None:
        return Calibration.load(Path(path))
    if machine is not None and machine.calibration is not None:
        return machine.calibration
    default = DEFAULT_FILE.expanduser()
    return Calibration.load(default) if default.is_file() else None


def check_growth(config: GrowthConfig) -> None:
    """Refuse what has no cost before a run begins, or that is not followed here.

    Raises:
        PlannerError: The message names the setting.
    """
    default = GrowthConfig()
    reasons = {
        "search": "a search decides while the run trains: leave it out to plan the fixed schedule",
        "resolutions": "one size of images is planned: leave it out, and plan every size with pixels=",
        "embedders_always": "memory is planned for embedders that train with the first block: leave it out",
    }
    for name, reason in reasons.items():
        value = getattr(config, name)
        if value != getattr(default, name):
            raise PlannerError(f"{name}={value!r} cannot be planned: {reason}.")
    if config.checkpointing == "auto":
        raise PlannerError(
            "checkpointing='auto' cannot be planned, since it measures the first step: plan with 'all' or None, or "
            "search with memory_gb=."
        )


def check_positive(values: dict[str, int | None]) -> None:
    """Refuse numbers that are below 1.

    Raises:
        PlannerError: The message names the value.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise PlannerError(f"{name}={value} is not allowed: use a whole number of at least 1.")
