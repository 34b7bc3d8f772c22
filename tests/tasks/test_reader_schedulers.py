"""The scheduler of a pipeline is followed in training and saved as trained, or refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.flow_matching import load_flow
from autoprog_diffusion.tasks.lora import load_any
from autoprog_diffusion.tasks.noise_schedule import (
    DENOISING,
    adopt_schedule,
    can_sample,
    refuse_prediction,
    training_scheduler,
)
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline

from .tiny_folders import LOADERS


# Samplers of Diffusers under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def scheduler_class(name: str) -> Any:
    found = getattr(diffusers, name)
    # Diffusers puts a dummy in the place of what needs torchsde or scipy, which are no dependency of ours.
    if type(found).__name__ == "DummyObject":
        pytest.skip(f"{name} needs a library that is not installed")
    return found


def with_scheduler(source: Path, folder: Path, scheduler: Any) -> Path:
    """The same pipeline with another scheduler: links to its other parts."""
    folder.mkdir()
    for part in source.iterdir():
        if part.name not in ("scheduler", "model_index.json"):
            (folder / part.name).symlink_to(part)
    scheduler.save_pretrained(folder / "scheduler")
    index = (source / "model_index.json").read_text()
    own = type(scheduler).__name__
    for name in ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler"):
        index = index.replace(f'"{name}"', f'"{own}"')
    (folder / "model_index.json").write_text(index)
    return folder


OTHER_PROCESSES = {
    "EDM Euler": ("EDMEulerScheduler", {}, "EDMEulerScheduler, which is for models with EDM's preconditioning"),
    "EDM DPM": ("EDMDPMSolverMultistepScheduler", {}, "EDMDPMSolverMultistepScheduler, which is for models with EDM"),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}, "is for flow matching: use recipes/finetune_flow.py"),
    "LCM": ("LCMScheduler", {}, "LCMScheduler, which samples a model that was distilled"),
    "TCD": ("TCDScheduler", {}, "TCDScheduler, which samples a model that was distilled"),
    "consistency": ("CMStochasticIterativeScheduler", {}, "is for consistency models"),
    "IPNDM": ("IPNDMScheduler", {}, "has another noise process than DDPM's"),
    "CogVideoX": ("CogVideoXDDIMScheduler", {}, "has another noise process than DDPM's"),
    "flow sigmas": ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, "has use_flow_sigmas=True"),
    "flow prediction": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction"},
        r"prediction_type='flow_prediction': allowed are \['epsilon', 'v_prediction', 'sample'\]",
    ),
    "continuous": ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "has timestep_type='continuous'"),
}


@pytest.mark.parametrize("name", OTHER_PROCESSES)
def test_another_process_is_refused_before_training(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    own, settings, message = OTHER_PROCESSES[name]
    # All loaders ask one function; that every one of them does is seen by two of its answers.
    for kind in ("sd", "sdxl", "dit") if name in ("EDM Euler", "flow") else ("sd",):
        folder = with_scheduler(folders[kind], tmp_path / kind, scheduler_class(own)(**settings))
        with pytest.raises(GrowthError, match=message):
            LOADERS[kind](str(folder))
        if kind != "dit":
            with pytest.raises(GrowthError, match=message):
                load_any(str(folder))


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchLCMScheduler"])
def test_flow_matching_needs_a_scheduler_of_its_own(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = with_scheduler(folders["sd3"], tmp_path / "model", scheduler_class(name)())
    with pytest.raises(GrowthError, match=f"is {name}, and flow matching needs one of"):
        load_flow(str(folder))


def test_inverted_sigmas_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    with pytest.raises(GrowthError, match="has invert_sigmas=True"):
        load_flow(str(with_scheduler(folders["sd3"], tmp_path / "model", scheduler)))


BETAS: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "given": {"trained_betas": torch.linspace(1e-4, 0.03, 1000).tolist()},
    "few": {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2"},
    "zero": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    # Heun and KDPM know this one, DDPM does not.
    "exp": {"beta_schedule": "exp"},
}


@pytest.mark.parametrize("name", DENOISING)
def test_a_sampler_of_ddpm_trains_with_its_own_betas(name: str) -> None:
    kind = scheduler_class(name)
    for betas, given in BETAS.items():
        settings = {"clip_sample": False, "steps_offset": 1, **given}
        known = {key: value for key, value in settings.items() if key in kind._get_init_keys(kind)}
        try:
            scheduler = kind(**known)
        except NotImplementedError:
            assert betas == "exp"  # most samplers do not know that schedule: there is nothing to train with
            continue
        pipeline = SimpleNamespace(scheduler=scheduler)
        trained = training_scheduler(pipeline)
        wanted = torch.as_tensor(scheduler.alphas_cumprod)
        torch.testing.assert_close(trained.alphas_cumprod, wanted, rtol=0, atol=1e-6)
        assert trained.config.prediction_type == scheduler.config.prediction_type
        adopt_schedule(pipeline, trained)
        assert pipeline.scheduler is scheduler


def test_settings_that_a_sampler_ignores_do_not_count(pipeline_dir: Path) -> None:
    """PNDM made from DDIM's settings notes a rescaling that it does not do."""
    pipeline = load_pipeline(str(pipeline_dir))
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    pipeline.scheduler = diffusers.PNDMScheduler.from_config(pipeline.scheduler.config)
    trained = training_scheduler(pipeline)
    assert trained.alphas_cumprod[-1] > 1e-6
    torch.testing.assert_close(trained.alphas_cumprod, pipeline.scheduler.alphas_cumprod, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_the_pipeline_is_saved_as_it_was_trained(pipeline_dir: Path, tmp_path: Path, name: str) -> None:
    for kind in ("epsilon", "sample", "v_prediction"):
        pipeline = load_pipeline(str(pipeline_dir))
        pipeline.scheduler = scheduler_class(name).from_config(pipeline.scheduler.config)
        trained = training_scheduler(pipeline, kind)
        assert trained.config.prediction_type == kind
        adopt_schedule(pipeline, trained)
        pipeline.save_pretrained(tmp_path / kind)
        saved: Any = StableDiffusionPipeline.from_pretrained(tmp_path / kind, safety_checker=None)
        assert saved.scheduler.config.prediction_type == kind
        assert can_sample(saved.scheduler)
        assert type(saved.scheduler).__name__ in (name, "DDIMScheduler")
        torch.testing.assert_close(
            torch.as_tensor(saved.scheduler.alphas_cumprod), trained.alphas_cumprod, rtol=0, atol=1e-6
        )
        again = training_scheduler(saved)
        assert torch.equal(again.alphas_cumprod, trained.alphas_cumprod)
        options: Any = {"num_inference_steps": 3, "output_type": "np", "height": 32, "width": 32}
        saved.set_progress_bar_config(disable=True)
        assert torch.isfinite(torch.as_tensor(saved("a", **options).images)).all()


def test_noise_prediction_has_a_signal_at_every_step(pipeline_dir: Path) -> None:
    pipeline = load_pipeline(str(pipeline_dir))
    trained = training_scheduler(pipeline, "epsilon")
    assert trained.alphas_cumprod[-1] > 1e-6
    adopt_schedule(pipeline, trained)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.scheduler.config.rescale_betas_zero_snr is False
    assert pipeline.scheduler.config.timestep_spacing == "trailing"


def test_a_lora_cannot_change_the_prediction_type(pipeline_dir: Path) -> None:
    pipeline = load_pipeline(str(pipeline_dir))
    refuse_prediction(pipeline, None)
    refuse_prediction(pipeline, "v_prediction")
    with pytest.raises(
        GrowthError, match="--prediction_type epsilon .* says v_prediction: its file holds no scheduler"
    ):
        refuse_prediction(pipeline, "epsilon")
