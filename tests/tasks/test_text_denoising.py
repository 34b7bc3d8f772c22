"""PixArt-Sigma is trained by denoising as its own pipeline samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import tyro
from accelerate import Accelerator
from torch import Tensor

from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth import ConfigError, GrowthError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import FlowMatchingArguments, noise_settings
from autoprog_diffusion.tasks.flow_flags import check_flow_flags
from autoprog_diffusion.tasks.flow_matching import FlowSettings, flow_family, load_flow
from autoprog_diffusion.tasks.flow_pictures import draw_flow
from autoprog_diffusion.tasks.learned_variance import variational_bound
from autoprog_diffusion.tasks.lora import LoraSettings, add_lora
from autoprog_diffusion.tasks.text_denoising import TextDenoising
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import growth_of
from .tiny_families import build_pixart
from .tiny_transformers import save


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
NewTask = Callable[..., TextDenoising]
ROWS = [0, 5, 10]  # of pictures without transparency


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """With and without a learned variance; no test trains them."""
    root = tmp_path_factory.mktemp("pixart")
    return {
        learned: load_flow(str(save(root / str(learned), build_pixart, learned_variance=learned)))
        for learned in (True, False)
    }


@pytest.fixture
def new_task(
    pipelines: dict[bool, Any],
    data: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> NewTask:
    def make(*flags: object, learned: bool = True) -> TextDenoising:
        words = ["--output_dir", tmp_path, "--num_stages", 1, *flags]
        args = tyro.cli(FlowMatchingArguments, args=[str(word) for word in words])
        pipeline = pipelines[learned]
        pipeline.transformer.eval()
        grown = build_pixart().transformer  # the shared one stays as it is
        growth = GrowthScheduler(grown, growth_of(args, 8)[0])
        growth.prepare(grown, num_training_steps=8)
        latents = make_latents(pipeline, data, args, new_accelerator(args), resolution=32)
        task = TextDenoising(
            pipeline,
            latents,
            noise_settings(args),
            empty=args.flow.proportion_empty_prompts,
            max_sequence_length=args.flow.max_sequence_length,
        )
        task.enter_stage(growth)
        return task

    return make


def literal_output(task: TextDenoising, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """The transformer's, by the calls that the pipeline makes, written out."""
    pipeline = task.pipeline
    captions = [task.latents.data[row]["text"] for row in ROWS]
    tokens, mask, _, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, clean_caption=True)
    return pipeline.transformer(
        noisy, encoder_hidden_states=tokens, timestep=timesteps, encoder_attention_mask=mask,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False,
    )[0]  # fmt: skip


@pytest.mark.parametrize("learned", [True, False])
def test_the_loss_is_the_error_of_the_noise_and_the_bound(new_task: NewTask, learned: bool) -> None:
    task = new_task(learned=learned)
    torch.manual_seed(4)
    with torch.no_grad():
        loss = task.loss(task.pipeline.transformer, {"index": torch.tensor(ROWS)})
        torch.manual_seed(4)
        pixels = []
        for row in ROWS:
            image = task.latents.data[row]["image"].convert("RGB")
            left, top = (image.width - 32) // 2, (image.height - 32) // 2
            square = np.array(image.crop((left, top, left + 32, top + 32)))
            pixels.append(torch.from_numpy(square).permute(2, 0, 1) / 127.5 - 1)
        found = task.pipeline.vae.encode(torch.stack(pixels)).latent_dist
        latents = 1.5 * (found.mean + found.std * torch.randn(found.mean.shape))
        noise = torch.randn(latents.shape)
        timesteps = torch.randint(0, 1000, (3,))
        betas = torch.linspace(0.0001, 0.02, 1000)
        kept = (1 - betas).cumprod(0)[timesteps].view(-1, 1, 1, 1)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        output = literal_output(task, noisy, timesteps)
        literal = (output[:, :4] - noise).square().mean()
        if learned:
            literal = literal + variational_bound(
                output[:, :4], output[:, 4:], clean=latents, noisy=noisy, timesteps=timesteps,
                noise_scheduler=task.noise_scheduler,
            )  # fmt: skip
    torch.testing.assert_close(loss, literal, rtol=1e-4, atol=1e-5)


def test_the_prediction_is_what_the_pipeline_gives_its_scheduler(
    pipelines: dict[bool, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines[True]
    calls = []
    step = pipeline.scheduler.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return step(*args, **kwargs)

    monkeypatch.setattr(pipeline.scheduler, "step", spy)
    family = flow_family(pipeline)
    draw_flow(pipeline, ["a b"], size=32, steps=3, guidance=2.0, seed=0)
    with torch.no_grad():
        tokens, pooled = family.encode(["a b", ""], family.most_text)
        for output, timestep, sample in calls:
            times = timestep.repeat(2)
            both = family.predict(
                pipeline.transformer, torch.cat([sample, sample]), times, tokens=tokens, pooled=pooled
            )
            given, empty = both[:, :4].split(1)
            torch.testing.assert_close(empty + 2 * (given - empty), output, rtol=1e-4, atol=1e-5)


def test_held_out_losses_are_those_of_the_draw_and_of_every_sample(new_task: NewTask) -> None:
    task = new_task("--proportion_empty_prompts", 1.0)
    draw = Draw(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), ((1,), (2,), (3,)), torch.device("cpu"))
    batch = {"index": torch.tensor(ROWS)}
    with torch.no_grad():
        together = task.held_out_losses(task.pipeline.transformer, batch, draw)
        alone = [
            task.held_out_losses(task.pipeline.transformer, {"index": torch.tensor([row])}, draw.sample(place))
            for place, row in enumerate(ROWS)
        ]
    assert together.shape == (3,)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_what_does_not_belong_to_it_is_refused(new_task: NewTask, pipelines: dict[bool, Any]) -> None:
    with pytest.raises(ConfigError, match="--prediction_type v_prediction is not allowed: .* a variance too"):
        new_task("--prediction_type", "v_prediction")
    with pytest.raises(ConfigError, match="--max_sequence_length 513 is not allowed: use 0 to 512"):
        new_task("--max_sequence_length", 513)
    check_flow_flags(FlowSettings(max_sequence_length=3), takes_length=True)
    with pytest.raises(ConfigError, match="--guidance is for flow matching, .* trained by denoising: remove the flag"):
        check_flow_flags(FlowSettings(guidance=3.0), takes_length=True)
    with pytest.raises(GrowthError, match="PixArtTransformer2DModel takes no PEFT adapters"):
        add_lora(pipelines[True].transformer, LoraSettings(), seed=0)
