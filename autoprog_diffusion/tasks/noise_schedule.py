"""The noise schedule of a pipeline: followed in training, saved as trained, or refused by name."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from autoprog_diffusion.growth.errors import ConfigError, GrowthError


logger = logging.getLogger(__name__)

# Samplers of one and the same noise process, that of DDPM: a model that one of them samples is trained by denoising.
DENOISING = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
)
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
# Settings that turn one of the samplers above into one of flow matching.
FLOW_SETTINGS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Settings that turn one of those samplers into one of another process: name -> the value that does not.
PLAIN_SETTINGS = {"use_flow_sigmas": False, "timestep_type": "discrete"}
# Why a class is not among them, by a part of its name.
REASONS = {
    "EDM": "is for models with EDM's preconditioning, which no recipe trains",
    "Flow": "is for flow matching: use recipes/finetune_flow.py",
    "LCM": "samples a model that was distilled to a few steps, which training by denoising would undo",
    "TCD": "samples a model that was distilled to a few steps, which training by denoising would undo",
    "CM": "is for consistency models, which no recipe trains",
}
TOLERANCE = 1e-6  # samplers put 2^-24 in the place of a terminal signal of zero


def check_denoising(name: str, scheduler: Any) -> None:
    """Refuse a pipeline whose scheduler belongs to another process than DDPM's.

    Args:
        name: Of the pipeline, for the message.
        scheduler: The pipeline's.

    Raises:
        GrowthError: The message names the class or the setting, what is allowed, and the fix.
    """
    kind = _known_class(scheduler, DENOISING)
    if kind is None:
        found = type(scheduler).__name__
        reason = next((why for part, why in REASONS.items() if part in found), "has another noise process than DDPM's")
        raise GrowthError(
            f"the scheduler of {name} is {found}, which {reason}. Allowed are {list(DENOISING)}: choose another "
            "model, or, if the model was trained by denoising, save the pipeline with one of these."
        )
    config = scheduler.config
    for setting, plain in PLAIN_SETTINGS.items():
        value = config.get(setting, plain)
        if value != plain:
            raise GrowthError(
                f"the scheduler of {name} has {setting}={value!r}, which is no denoising with DDPM's betas: only "
                f"{plain!r} is allowed. Choose another model; recipes/finetune_flow.py trains flow matching."
            )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise GrowthError(
            f"the scheduler of {name} has prediction_type={prediction!r}: allowed are {list(PREDICTIONS)}. Choose "
            "another model; recipes/finetune_flow.py trains flow matching."
        )
    _check_betas(name, scheduler)


def _check_betas(name: str, scheduler: Any) -> None:
    """Refuse betas that are no noise, or not as many as there are steps to draw from."""
    betas = torch.as_tensor(scheduler.betas)
    steps = scheduler.config.num_train_timesteps
    if len(betas) != steps:
        raise GrowthError(
            f"the scheduler of {name} has {len(betas)} trained_betas and num_train_timesteps={steps}: one for every "
            "step is needed. Correct scheduler/scheduler_config.json."
        )
    lowest = float(betas.min())
    highest = float(betas.max())
    if not 0 <= lowest <= highest <= 1:
        raise GrowthError(
            f"the betas of the scheduler of {name} lie between {lowest:.3g} and {highest:.3g}, and only [0, 1] is "
            "allowed: correct beta_start, beta_end or trained_betas in scheduler/scheduler_config.json."
        )


def check_flow(name: str, scheduler: Any, allowed: tuple[str, ...] = FLOW) -> None:
    """Refuse a flow-matching pipeline whose scheduler does not sample by flow matching.

    Args:
        name: Of the pipeline, for the message.
        scheduler: The pipeline's.
        allowed: Names of the classes that its family is sampled with.

    Raises:
        GrowthError: The message names the class or the setting, what is allowed, and the fix.
    """
    kind = _known_class(scheduler, allowed)
    if kind is None:
        raise GrowthError(
            f"the scheduler of {name} is {type(scheduler).__name__}, and flow matching needs one of {list(allowed)}: "
            "save the pipeline with the scheduler that its model was trained with."
        )
    config = scheduler.config
    if kind not in FLOW:
        for setting, wanted in FLOW_SETTINGS.items():
            value = config.get(setting)
            if value != wanted:
                raise GrowthError(
                    f"the scheduler of {name} is {kind} with {setting}={value!r}, which is no flow matching: only "
                    f"{wanted!r} is allowed. Correct scheduler/scheduler_config.json."
                )
    if config.get("invert_sigmas"):
        raise GrowthError(
            f"the scheduler of {name} has invert_sigmas=True, so its time runs from noise at 0: only False is trained."
        )
    setting = "shift" if kind in FLOW else "flow_shift"
    shift = config[setting]
    if not shift > 0:
        raise GrowthError(
            f"the scheduler of {name} has {setting}={shift!r}, which leaves no noise at any time: only numbers above "
            "0 are allowed. Correct scheduler/scheduler_config.json."
        )


def training_scheduler(pipeline: Any, prediction_type: str | None = None) -> Any:
    """The DDPM scheduler with the betas of the pipeline's own; `prediction_type` replaces its own.

    A model that predicts the noise says nothing about the image where only noise is left: `epsilon` in the place of
    another prediction type turns `rescale_betas_zero_snr` off.

    Raises:
        GrowthError: The pipeline's scheduler belongs to another process.
    """
    own = pipeline.scheduler
    check_denoising(type(pipeline).__name__, own)
    if prediction_type in (None, own.config.get("prediction_type")):
        return _with_betas_of(own)
    changes: dict[str, Any] = {"prediction_type": prediction_type}
    if prediction_type == "epsilon" and own.config.get("rescale_betas_zero_snr"):
        logger.info("rescale_betas_zero_snr is off, in training and in what is saved: epsilon needs some signal.")
        changes["rescale_betas_zero_snr"] = False
    return _with_betas_of(type(own).from_config(own.config, **changes))


def adopt_schedule(pipeline: Any, trained: Any) -> None:
    """Give the pipeline's scheduler the prediction type and betas that are trained, so that it is saved as trained.

    DDIM takes the place of a sampler that knows no such prediction type.

    Args:
        pipeline: Its scheduler is replaced, if it differs.
        trained: What `training_scheduler` made for it.
    """
    own = pipeline.scheduler
    changes = {}
    for key in ("prediction_type", "rescale_betas_zero_snr"):
        value = trained.config[key]
        if own.config.get(key, value) != value:
            changes[key] = value
    if not changes:
        return
    # As keywords: a value in the dict is overlooked where the configuration notes it as left at its default.
    sampler = type(own).from_config(own.config, **changes)
    if not can_sample(sampler):
        logger.info(
            "%s cannot sample prediction_type=%s: the pipeline is saved with DDIMScheduler.",
            type(own).__name__,
            trained.config.prediction_type,
        )
        sampler = DDIMScheduler.from_config(own.config, **changes)
    pipeline.scheduler = sampler


def can_sample(scheduler: Any) -> bool:
    """Whether a scheduler knows its own prediction type: two steps from noise."""
    sampler = copy.deepcopy(scheduler)
    latents = torch.ones(1, 1, 2, 2)
    try:
        sampler.set_timesteps(2)
        for timestep in sampler.timesteps[:2]:
            model_input = sampler.scale_model_input(latents, timestep)
            latents = sampler.step(0.5 * model_input, timestep, latents, return_dict=False)[0]
    except (NotImplementedError, ValueError):
        return False
    return True


def _known_class(scheduler: Any, known: tuple[str, ...]) -> str | None:
    """The name of the scheduler's class, or of the one that it extends, if it is known."""
    return next((kind.__name__ for kind in type(scheduler).__mro__ if kind.__name__ in known), None)


def _with_betas_of(own: Any) -> Any:
    """DDPM with the settings of another sampler, and with its very betas where the settings alone give others."""
    try:
        scheduler: Any = DDPMScheduler.from_config(own.config)
    except NotImplementedError:
        scheduler = None  # a beta_schedule that DDPM does not know
    wanted = torch.as_tensor(own.alphas_cumprod, dtype=torch.float32)
    if scheduler is not None and len(scheduler.alphas_cumprod) == len(wanted):
        if torch.allclose(scheduler.alphas_cumprod, wanted, rtol=0.0, atol=TOLERANCE):
            return scheduler
    betas = torch.as_tensor(own.betas).tolist()
    # The betas of the other one are rescaled already, if they ever were.
    return DDPMScheduler.from_config(own.config, trained_betas=betas, rescale_betas_zero_snr=False)


def refuse_prediction(pipeline: Any, prediction_type: str | None) -> None:
    """Refuse another prediction type than the pipeline's own, where the scheduler is not saved with what is trained.

    Raises:
        ConfigError: The message names both.
    """
    own = pipeline.scheduler.config.get("prediction_type")
    if prediction_type not in (None, own):
        raise ConfigError(
            f"--prediction_type {prediction_type} is not allowed for a LoRA on a pipeline whose scheduler says {own}: "
            "its file holds no scheduler, so it would be sampled as the other. Leave the flag out, or save the "
            "pipeline with the other scheduler first."
        )
