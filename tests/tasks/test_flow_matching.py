"""The flow-matching task for SD3 and Flux: its loss, its text, the time that follows the resolution."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from autoprog_diffusion.growth import ConfigError, GrowthError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import FlowMatchingArguments, noise_settings
from autoprog_diffusion.tasks.flow_matching import FlowMatching, load_flow, text_encoders
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments
from autoprog_diffusion.training.samples import draw_prompts

from .tiny import growth_of
from .tiny_transformers import SIZE, build_dit, build_flux, build_sd3, save


NewTask = Callable[..., tuple[FlowMatching, GrowthScheduler]]
BUILD = {"sd3": build_sd3, "flux": build_flux}
kinds = pytest.mark.parametrize("kind", BUILD)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind), build) for kind, build in BUILD.items()}


@pytest.fixture
def new_task(
    pipelines: dict[str, Path],
    data: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> NewTask:
    """A task and its growth in stage 0 of two stages of 4 steps each."""

    def make(kind: str, *flags: object, resolution: int = SIZE) -> tuple[FlowMatching, GrowthScheduler]:
        words = ["--output_dir", tmp_path / "out", "--num_stages", 2, "--direction", "unfreeze", *flags]
        args = tyro.cli(FlowMatchingArguments, args=[str(word) for word in ("--max_sequence_length", 6, *words)])
        pipeline = load_flow(str(pipelines[kind]))
        growth = GrowthScheduler(pipeline.transformer, growth_of(args, 8)[0])
        growth.prepare(pipeline.transformer, num_training_steps=8)
        latents = make_latents(pipeline, data, args, new_accelerator(args), resolution=resolution)
        return FlowMatching(pipeline, latents, args.flow, noise_settings(args)), growth

    return make


class Recorded:
    """A denoiser that keeps what it was called with."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.calls = model, []

    def __call__(self, **kwargs: Any) -> Any:
        self.calls.append(kwargs)
        return self.model(**kwargs)


def batch(*rows: int) -> dict[str, Tensor]:
    return {"index": torch.tensor(rows)}


def call_literally(task: FlowMatching, rows: list[int], latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """The velocity, as the pipeline would ask for it: (N, C, h, w)."""
    pipeline, captions = task.pipeline, [task.latents.data[row]["text"] for row in rows]
    mix = sigmas.view(-1, 1, 1, 1)
    noisy = (1 - mix) * latents + mix * noise
    model = pipeline.transformer
    with torch.no_grad():
        if type(model).__name__ == "SD3Transformer2DModel":
            tokens, _, pooled, _ = pipeline.encode_prompt(captions, None, None, max_sequence_length=6)
            text = {"encoder_hidden_states": tokens, "pooled_projections": pooled}
            return model(noisy, timestep=1000 * sigmas, **text, return_dict=False)[0]
        tokens, pooled, txt_ids = pipeline.encode_prompt(captions, None, max_sequence_length=6)
        count, _, height, width = noisy.shape
        # Patches of two by two in reading order, their channels before their places.
        packed = F.pixel_unshuffle(noisy, 2).flatten(2).transpose(1, 2)
        rows_, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        img_ids = torch.stack([torch.zeros_like(rows_), rows_, columns], -1).flatten(0, 1).float()
        output = model(
            packed, timestep=sigmas, guidance=torch.full((count,), task.flow.guidance), txt_ids=txt_ids,
            img_ids=img_ids, encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False,
        )[0]  # fmt: skip
    return F.pixel_shuffle(output.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


@kinds
@pytest.mark.parametrize("scheme", ["logit_normal", "cosmap"])
def test_the_loss_is_the_error_of_the_velocity(new_task: NewTask, kind: str, scheme: str) -> None:
    task, growth = new_task(kind, "--weighting_scheme", scheme, "--guidance", 2.5)
    task.enter_stage(growth)
    rows, denoiser = [1, 8, 15], Recorded(task.pipeline.transformer.eval())
    torch.manual_seed(4)
    loss = task.loss(denoiser, batch(*rows))
    torch.manual_seed(4)
    latents = task.latents.draw(batch(*rows))
    noise = torch.randn_like(latents)
    sigmas = denoiser.calls[0]["timestep"] / (1000 if kind == "sd3" else 1)
    velocity = call_literally(task, rows, latents, noise, sigmas)
    weights = compute_loss_weighting_for_sd3(scheme, sigmas).view(-1, 1, 1, 1)
    literal = (weights * (velocity - (noise - latents)).square()).mean()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, literal, rtol=1e-4, atol=1e-5)


@kinds
def test_latents_are_what_the_pipeline_decodes(new_task: NewTask, kind: str) -> None:
    task, growth = new_task(kind)
    task.enter_stage(growth)
    torch.manual_seed(2)
    latents = task.latents.draw(batch(3))
    moments = task.latents._caches[0][torch.tensor([3])]  # type: ignore[index]
    torch.manual_seed(2)
    drawn = moments[:, :4] + (0.5 * moments[:, 4:]).exp() * torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(latents / 1.5 + 0.1, drawn)  # both pipelines decode this


@pytest.mark.parametrize(("side", "shift"), [(16, 3 * math.sqrt(4 / 16)), (32, 3.0)])
def test_sd3_needs_less_noise_at_a_lower_resolution(new_task: NewTask, side: int, shift: float) -> None:
    task, growth = new_task("sd3", "--resolutions", 16, 32)
    for _ in range(0 if side == 16 else 4):
        growth.step()
    task.enter_stage(growth)
    assert task.shift == pytest.approx(shift)


@pytest.mark.parametrize("side", [16, 32])
def test_flux_shifts_time_as_its_pipeline_does_at_that_size(new_task: NewTask, side: int) -> None:
    task, growth = new_task("flux", "--resolutions", 16, 32)
    for _ in range(0 if side == 16 else 4):
        growth.step()
    task.enter_stage(growth)
    pipeline = task.pipeline
    draw_prompts(pipeline, ["a"], size=side, steps=4, guidance=1.0, seed=0, max_sequence_length=6)
    literal = pipeline.scheduler.sigmas[:-1]
    unshifted = torch.linspace(1, 1 / 4, 4)
    ours = task.shift * unshifted / (1 + (task.shift - 1) * unshifted)
    torch.testing.assert_close(ours, literal, rtol=1e-5, atol=1e-6)
    assert task.shift > 1.2


@pytest.mark.parametrize("sampling", ["independent", "stratified"])
def test_times_are_drawn_as_in_diffusers_script_and_then_shifted(new_task: NewTask, sampling: str) -> None:
    task, growth = new_task("sd3", "--logit_mean", 1.0, "--logit_std", 0.5, "--timestep_sampling", sampling)
    task.enter_stage(growth)
    torch.manual_seed(0)
    sigmas = task._draw_times(4000)
    place = 1 - sigmas / (3 - 2 * sigmas)  # undo the shift of 3: the place in the list of times, from noise on
    logits = torch.logit(place)
    assert logits.mean().item() == pytest.approx(1.0, abs=0.05)
    assert logits.std().item() == pytest.approx(0.5, abs=0.05)
    for scheme in ("mode", "none", "sigma_sqrt"):
        task, growth = new_task("sd3", "--weighting_scheme", scheme)
        task.enter_stage(growth)
        assert 0 < task._draw_times(2000).min() < task._draw_times(2000).max() <= 1


@kinds
def test_captions_are_dropped_as_often_as_asked(new_task: NewTask, kind: str) -> None:
    task, growth = new_task(kind, "--proportion_empty_prompts", 0.5)
    task.enter_stage(growth)
    torch.manual_seed(0)
    rows = torch.full((200,), 5)
    tokens, pooled = task.captions.draw(rows)
    empty, full = (task.family.encode([text], 6) for text in ("", task.latents.data[5]["text"]))
    with torch.no_grad():
        dropped = [torch.allclose(one, empty[0][0], atol=1e-5) for one in tokens]
    assert 70 < sum(dropped) < 130
    for one, pool, gone in zip(tokens, pooled, dropped):
        literal = empty if gone else full
        torch.testing.assert_close(one, literal[0][0].detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pool, literal[1][0].detach(), rtol=1e-4, atol=1e-5)


def test_text_of_another_length_is_encoded_anew(new_task: NewTask, tmp_path: Path) -> None:
    path = tmp_path / "out" / "cache" / "text.npy"
    task, growth = new_task("sd3")
    task.enter_stage(growth)
    first = path.stat().st_size
    task, growth = new_task("sd3", "--max_sequence_length", 0)
    task.enter_stage(growth)
    assert task.captions.draw(torch.tensor([0]))[0].shape == (1, 8, 32)
    assert path.stat().st_size < first


@kinds
def test_only_the_transformer_gets_gradients(new_task: NewTask, kind: str) -> None:
    task, growth = new_task(kind)
    task.enter_stage(growth)
    task.loss(task.pipeline.transformer, batch(0, 1, 2, 3)).backward()
    assert any(parameter.grad is not None for parameter in task.pipeline.transformer.parameters())
    for module in (task.pipeline.vae, *text_encoders(task.pipeline)):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_other_pipelines_and_values_are_refused(
    new_task: NewTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        GrowthError, match=r"only \[.*3Pipeline., .FluxPipeline.*\] are .* use recipes/finetune_dit.py"
    ):
        load_flow(str(save(tmp_path / "dit", build_dit)))
    with pytest.raises(GrowthError, match="holds no Diffusers pipeline"):
        load_flow(str(tmp_path / "nothing"))
    for flag, value in (("proportion_empty_prompts", 1.5), ("max_sequence_length", 600), ("logit_std", 0)):
        with pytest.raises(ConfigError, match=f"--{flag} {value}.* is not allowed"):
            new_task("sd3", f"--{flag}", value)
    for flag, value in (("snr_gamma", 5.0), ("noise_offset", 0.1), ("prediction_type", "epsilon")):
        with pytest.raises(ConfigError, match=f"--{flag} {value} belongs to noise prediction"):
            new_task("sd3", f"--{flag}", value)


@pytest.mark.parametrize("guidance", [True, False])
def test_flux_without_guidance_gets_none(guidance: bool, tmp_path: Path, new_task: NewTask) -> None:
    task, growth = new_task("flux")
    task.enter_stage(growth)
    if not guidance:
        task.pipeline.transformer = build_flux(guidance=False).transformer
    denoiser = Recorded(task.pipeline.transformer)
    task.loss(denoiser, batch(0))
    assert (denoiser.calls[0]["guidance"] is not None) == guidance
