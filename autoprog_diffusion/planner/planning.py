"""`plan`: what a run of a model takes on a machine, and how it is trained best there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoprog_diffusion.growth import GrowthConfig

from .candidates import BATCHES, ONE_STAGE, Candidate, Estimator, search, smallest
from .command_lines import command_line
from .errors import PlannerError
from .machine import DEFAULT_FILE, Calibration, Machine, find_gpu, memory_machine, steady
from .memory import stage_memory
from .models import ModelSource, find_model
from .planned import Planned, StagePlan
from .profile import RANK, Profile, StageRequest, latent_side, make_profile
from .quality import measured
from .settings import Plan
from .shapes import Shape, default_side


BEST = 3
VAE_FACTOR = 8
TRACED_STAGES = 4  # of a plan of more stages FLOPs are added up from those of its blocks
WORTH = 1.05  # a plan that saves less is not worth it


def plan(
    model: str,
    *,
    growth: GrowthConfig | None = None,
    pixels: int | None = None,
    batch: int = 1,
    steps: int = 1000,
    gpu: str | None = None,
    memory_gb: float | None = None,
    tflops: float | None = None,
    calibration: str | Path | None = None,
    parallel: bool = False,
) -> Planned:
    """Plan the training of a model that need not be there: its configuration is enough.

    Args:
        model: A published name (`sdxl`), a config.json, its folder, or a pipeline's folder.
        growth: Stages to plan; the default is what the recipes do.
        pixels: Side of the images [the model's own].
        batch: Images of a forward pass; a search tries smaller ones, and larger ones if this is 1.
        steps: Optimizer steps of the run.
        gpu: A GPU by its name, to search what fits.
        memory_gb: Memory in 10^9 bytes that a step may take, to search what fits.
        tflops: Speed that training reaches, in 10^12 FLOP/s, in place of a calibration.
        calibration: File that `autoprog-diffusion calibrate` wrote.
        parallel: Use two processes; for a process that has trained nothing yet.

    Raises:
        PlannerError: The model or GPU is unknown, the configuration is no denoiser's, or a number is impossible.
        UnitError: The model's blocks cannot be named.
    """
    check_positive({"pixels": pixels, "batch": batch, "steps": steps})
    machine = find_machine(gpu, memory_gb)
    speed = find_speed(machine, tflops, calibration)
    source = find_model(model)
    size = pixels or own_pixels(source)
    config = growth or GrowthConfig()
    request = traced_stages(config, steps, batch)
    shape = Shape(side=latent_side(source, size))
    profile = make_profile(source, shape, stages=request, parallel=parallel)
    estimator = Estimator(profile, speed, steps)
    stages = plan_stages(profile, estimator, config, steps=steps, batch=batch)
    planned = assemble(profile, estimator, stages, pixels=size, batch=batch, machine=machine)
    return replace(planned, verdict=verdict(planned))


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
    found = (
        []
        if machine is None
        else search(
            profile,
            estimator,
            machine.bytes,
            tried_batches(batch),
        )[:BEST]
    )
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


def own_pixels(source: ModelSource) -> int:
    """Side of the images that a model was made for."""
    return source.pixels or default_side(source.cls, source.config) * VAE_FACTOR


def traced_stages(config: GrowthConfig, steps: int, batch: int) -> StageRequest | None:
    """The stages to trace, if they are few."""
    return StageRequest(config, steps, batch) if config.num_stages <= TRACED_STAGES else None


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
        exact = index < len(profile.works)
        work = profile.works[index] if exact else estimator.work(settings, stage.blocks, batch)
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
                flops=work.flops,
                exact=exact,
                peak=memory["peak"],
                split=memory["split"],
                seconds=None if speed is None else speed.seconds(work, trained),
            )
        )
    return tuple(found)


def verdict(planned: Planned) -> str:
    """Whether growth is worth it, in words."""
    saved = 1 - planned.share
    against = measured("trained", "freeze", "against_shorter") or []
    text = (
        f"The plan takes {saved:.0%} fewer FLOPs than as many steps of full fine-tuning. By our measurements a "
        f"shortened full run needs {min(against):.2f} to {max(against):.2f} times the FLOPs of freezing for the same "
        "loss: "
    )
    if min(against) < 1 < WORTH < max(against):
        text += "growth is not worth it for speed alone, a shorter full run is as good."
    elif min(against) >= WORTH:
        text += "growth is worth it."
    else:
        text += "growth is not worth it for speed, train in full for fewer steps."
    if planned.machine is None:
        return text
    fitting = [candidate.family for candidate, _ in planned.best]
    if not fitting:
        return f"{text} Nothing fits this memory."
    if "full" not in fitting:
        others = " or ".join(sorted({*fitting}))
        return f"{text} Full fine-tuning does not fit this memory; {others} does, which is what it is good for here."
    return text


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


def check_positive(values: dict[str, int | None]) -> None:
    """Refuse numbers that are below 1.

    Raises:
        PlannerError: The message names the value.
    """
    for name, value in values.items():
        if value is not None and value < 1:
            raise PlannerError(f"{name}={value} is not allowed: use a whole number of at least 1.")
