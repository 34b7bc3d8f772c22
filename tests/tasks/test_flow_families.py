"""Every family of flow-matching models is trained as its own pipeline samples: text, latents, time and output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from torch import Tensor

from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth import ConfigError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import FlowMatchingArguments, noise_settings
from autoprog_diffusion.tasks.flow_matching import FlowMatching, flow_family
from autoprog_diffusion.tasks.flow_pictures import draw_flow
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import growth_of
from .tiny_families import BUILD, MEAN, STD


SIZE, LENGTH = 32, 300
# Samplers of Diffusers under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
kinds = pytest.mark.parametrize("kind", BUILD)
NewTask = Callable[..., tuple[FlowMatching, GrowthScheduler]]


@pytest.fixture
def new_task(
    family_pipelines: dict[str, Any],
    data: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> NewTask:
    """A task in the first of two stages of 4 steps each."""

    def make(kind: str, *flags: object) -> tuple[FlowMatching, GrowthScheduler]:
        words = ["--output_dir", tmp_path / kind, "--num_stages", 2, "--direction", "unfreeze"]
        words += ["--max_sequence_length", LENGTH, "--no-stage_embedding", *flags]
        args = tyro.cli(FlowMatchingArguments, args=[str(word) for word in words])
        pipeline = family_pipelines[kind]
        grown = copy.deepcopy(pipeline.transformer)  # the shared one stays as it is
        growth = GrowthScheduler(grown, growth_of(args, flow_family(pipeline).token_side)[0])
        growth.prepare(grown, num_training_steps=8)
        latents = make_latents(pipeline, data.select(range(12)), args, new_accelerator(args), resolution=SIZE)
        task = FlowMatching(pipeline, latents, args.flow, noise_settings(args))
        task.enter_stage(growth)
        return task, growth

    return make


class Spy:
    """Keeps the arguments of every call of a method, which goes on as before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.method = getattr(owner, name)
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self.method(*args, **kwargs)


def unpacked(kind: str, latents: Tensor, side: int) -> Tensor:
    """What a pipeline hands to its scheduler, as our latents are: packed tokens become pictures again."""
    if kind == "flux2":
        return latents.transpose(1, 2).unflatten(2, (side // 8, side // 8))
    if kind in ("flux", "qwen_image"):
        # Patches of two by two in reading order, their channels before their places.
        return F.pixel_shuffle(latents.transpose(1, 2).unflatten(2, (side // 8, side // 8)), 2)
    return latents


@pytest.mark.parametrize("kind", ["sd3", "flux", *BUILD])
def test_the_velocity_is_what_the_pipeline_gives_its_scheduler(
    family_pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pipeline = family_pipelines[kind]
    spy = Spy(monkeypatch, pipeline.scheduler, "step")
    family = flow_family(pipeline, guidance=0.0)  # Flux embeds the scale
    for caption in ("ab c", "a longer text of words"):
        spy.calls.clear()
        draw_flow(pipeline, [caption], size=SIZE, steps=3, guidance=0.0, seed=0, max_sequence_length=LENGTH)
        assert len(spy.calls) == 3
        with torch.no_grad():
            tokens, pooled = family.encode([caption, ""], LENGTH)
            for (output, timestep, sample), _ in spy.calls:
                noisy = unpacked(kind, sample, SIZE)
                sigma = torch.as_tensor([float(timestep) / 1000])
                ours = family.predict(pipeline.transformer, noisy, sigma, tokens=tokens[:1], pooled=pooled[:1])
                torch.testing.assert_close(ours, unpacked(kind, output, SIZE), rtol=1e-4, atol=1e-5)


@kinds
def test_an_empty_text_is_what_the_pipeline_guides_away_from(
    family_pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pipeline = family_pipelines[kind]
    family = flow_family(pipeline)
    step = Spy(monkeypatch, pipeline.scheduler, "step")
    with torch.no_grad():
        tokens, pooled = family.encode(["ab c", ""], LENGTH)
        draw_flow(pipeline, ["ab c"], size=SIZE, steps=2, guidance=3.0, seed=0, max_sequence_length=LENGTH)
        (output, timestep, sample), _ = step.calls[0]
        noisy = unpacked(kind, sample, SIZE)
        both = torch.cat([noisy, noisy])
        sigmas = torch.full((2,), float(timestep) / 1000)
        given, empty = family.predict(pipeline.transformer, both, sigmas, tokens=tokens, pooled=pooled).split(1)
    guided = empty + 3 * (given - empty)
    if kind == "z_image":  # counts its scale from the text on
        guided = given + 3 * (given - empty)
    if kind == "lumina2":  # keeps every row's length
        guided = guided * given.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    wanted = unpacked(kind, output, SIZE)
    if kind == "qwen_image":  # keeps every token's length
        tokens_of = [F.pixel_unshuffle(value, 2) for value in (given, guided)]
        lengths = [value.norm(dim=1, keepdim=True) for value in tokens_of]
        guided = F.pixel_shuffle(tokens_of[1] * lengths[0] / lengths[1], 2)
    torch.testing.assert_close(guided, wanted, rtol=1e-3, atol=1e-4)


def literal_latents(kind: str, vae: Any, pixels: Tensor, noise: Tensor) -> Tensor:
    """Latents as the pipeline's call takes them, written out."""
    mean, std = (torch.tensor(value).view(1, 4, 1, 1) for value in (MEAN, STD))
    if kind == "sana":
        return 0.4 * vae.encode(pixels).latent
    if kind == "flux2":
        means = vae.encode(pixels).latent_dist.mean
        count, _, height, width = means.shape
        patches = means.reshape(count, 4, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        patches = patches.reshape(count, 16, height // 2, width // 2)
        scale = (torch.linspace(0.5, 2, 16) + 1e-4).sqrt()
        return (patches - torch.linspace(-1, 1, 16).view(1, 16, 1, 1)) / scale.view(1, 16, 1, 1)
    if kind == "wan":
        found = vae.encode(pixels[:, :, None]).latent_dist
        return (found.mean + found.std * noise - mean[:, :, None]) / std[:, :, None]
    if kind == "qwen_image":
        found = vae.encode(pixels[:, :, None]).latent_dist
        return (found.mean[:, :, 0] + found.std[:, :, 0] * noise - mean) / std
    found = vae.encode(pixels).latent_dist
    return 1.5 * (found.mean + found.std * noise - 0.1)


def literal_velocity(kind: str, pipeline: Any, captions: list[str], noisy: Tensor, sigmas: Tensor) -> Tensor:
    """Noise less latents, by the calls that the pipeline makes, written out."""
    model = pipeline.transformer
    count = len(captions)
    if kind == "flux2":
        text, _ = pipeline.encode_prompt(captions, max_sequence_length=LENGTH)
        rows = noisy.shape[2]
        image = [[0, row, column, 0] for row in range(rows) for column in range(rows)]
        words = [[0, 0, 0, place] for place in range(LENGTH)]
        packed = noisy.flatten(2).transpose(1, 2)
        output = model(
            packed, timestep=sigmas, guidance=None, encoder_hidden_states=text, img_ids=torch.tensor(image),
            txt_ids=torch.tensor(words), return_dict=False,
        )[0]  # fmt: skip
        return output.transpose(1, 2).unflatten(2, (rows, rows))
    if kind == "qwen_image":
        text, mask = pipeline.encode_prompt(captions, max_sequence_length=LENGTH)
        rows = noisy.shape[2] // 2
        packed = pipeline._pack_latents(noisy, count, 4, 2 * rows, 2 * rows)
        output = model(
            packed, timestep=sigmas, encoder_hidden_states=text, encoder_hidden_states_mask=mask,
            img_shapes=[[(1, rows, rows)]] * count, return_dict=False,
        )[0]  # fmt: skip
        return pipeline._unpack_latents(output, SIZE, SIZE, 4)[:, :, 0]
    if kind == "z_image":
        text, _ = pipeline.encode_prompt(list(captions), do_classifier_free_guidance=False, max_sequence_length=LENGTH)
        output = model([one[:, None] for one in noisy], 1 - sigmas, text, return_dict=False)[0]
        return -torch.stack([one[:, 0] for one in output])
    if kind == "wan":
        text, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=LENGTH)
        return model(noisy, timestep=1000 * sigmas, encoder_hidden_states=text, return_dict=False)[0]
    told = {}
    if kind == "sana":
        call = type(pipeline).__call__.__wrapped__
        names = call.__code__.co_varnames[: call.__code__.co_argcount]
        told["complex_human_instruction"] = dict(zip(names[::-1], call.__defaults__[::-1]))[
            "complex_human_instruction"
        ]
    text, mask, _, _ = pipeline.encode_prompt(
        captions, do_classifier_free_guidance=False, max_sequence_length=LENGTH, **told
    )
    times = 1000 * sigmas * 0.5 if kind == "sana" else 1 - sigmas
    output = model(noisy, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=times, return_dict=False)[
        0
    ]
    return output if kind == "sana" else -output


@kinds
def test_the_loss_is_the_error_of_the_velocity(new_task: NewTask, kind: str) -> None:
    task, _ = new_task(kind, "--weighting_scheme", "none")
    rows = [0, 5, 10]  # without transparency
    batch = {"index": torch.tensor(rows)}
    images = [task.latents.data[row]["image"].convert("RGB") for row in rows]
    spy: list[Any] = []

    def model(*args: Any, **kwargs: Any) -> Any:
        spy.append((args, kwargs))
        return task.pipeline.transformer(*args, **kwargs)

    torch.manual_seed(4)
    loss = task.loss(model, batch)
    torch.manual_seed(4)
    pixels = torch.stack([task_pixels(task, image) for image in images])
    with torch.no_grad():
        still = literal_latents(kind, task.pipeline.vae, pixels, torch.zeros(1))
        first = torch.randn(still.shape) if kind not in ("sana", "flux2") else torch.zeros(1)
        latents = literal_latents(kind, task.pipeline.vae, pixels, first)
        noise = torch.randn(latents.shape)
        places = torch.rand(3).clamp(max=1 - 1e-3)
        sigmas = task.shift * (1 - places) / (1 + (task.shift - 1) * (1 - places))
        mix = sigmas.view(-1, *[1] * (latents.dim() - 1))
        noisy = (1 - mix) * latents + mix * noise
        captions = [task.latents.data[row]["text"] for row in rows]
        velocity = literal_velocity(kind, task.pipeline, captions, noisy, sigmas)
    literal = (velocity - (noise - latents)).square().mean()
    assert len(spy) == 1
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), literal, rtol=1e-4, atol=1e-5)


def task_pixels(task: FlowMatching, image: Any) -> Tensor:
    """A picture's centre square at the stage's side, in [-1, 1]."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    assert square.size == (task.latents.side,) * 2, "the pictures of this test need no resampling"
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("kind", ["qwen_image", "z_image", "lumina2"])
def test_padding_is_kept_to_the_longest_text_and_has_no_effect(new_task: NewTask, kind: str) -> None:
    task, _ = new_task(kind)
    family = task.family
    captions = [*sorted(set(task.latents.data["text"])), ""]
    counts = [int(family.encode([caption], LENGTH)[1].sum()) for caption in captions]
    assert task._length == max(counts) < LENGTH
    noisy = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        short, long = (
            family.predict(
                task.pipeline.transformer, noisy, torch.tensor([0.4]), **dict(zip(("tokens", "pooled"), text))
            )
            for text in (family.encode(["ab"], length) for length in (task._length, LENGTH))
        )
    torch.testing.assert_close(short, long, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "length", "tokens"),
    [("qwen_image", 30, 30), ("z_image", 12, 12), ("sana", 5, 5), ("lumina2", 20, 20), ("wan", 4, 4), ("flux2", 9, 9)],
)
def test_long_texts_are_counted_and_cut(
    new_task: NewTask, capsys: pytest.CaptureFixture, kind: str, length: int, tokens: int
) -> None:
    task, _ = new_task(kind, "--max_sequence_length", length)
    count = len(set(task.latents.data["text"]))
    said = f"{count} of {count} captions have more than the {tokens} tokens that tokenizer keeps: they are cut there"
    assert said in capsys.readouterr().out
    assert task.captions.draw(torch.tensor([0]))[0].shape[1] == length


def test_texts_that_fit_are_not_spoken_of(new_task: NewTask, capsys: pytest.CaptureFixture) -> None:
    new_task("z_image")
    assert "tokens that" not in capsys.readouterr().out


@kinds
def test_a_length_beyond_the_encoder_is_refused(new_task: NewTask, kind: str) -> None:
    with pytest.raises(ConfigError, match="--max_sequence_length 5000 is not allowed: use . to"):
        new_task(kind, "--max_sequence_length", 5000)


@pytest.mark.parametrize("kind", ["sd3", "flux", *BUILD])
@pytest.mark.parametrize("side", [32, 64])
def test_every_parameter_that_trains_gets_a_gradient(family_pipelines: dict[str, Any], kind: str, side: int) -> None:
    """As training on several processes needs; at the larger side Z-Image pads no picture."""
    pipeline = family_pipelines[kind]
    family = flow_family(pipeline)
    model = copy.deepcopy(pipeline.transformer)
    shape = (
        (4, 1, side // 4, side // 4) if kind == "wan" else (4, side // family.vae_factor, side // family.vae_factor)
    )
    noisy = torch.randn(2, 16, side // 8, side // 8) if kind == "flux2" else torch.randn(2, *shape)
    with torch.no_grad():
        tokens, pooled = family.encode(["ab c", "a longer text"], LENGTH)
    family.predict(model, noisy, torch.tensor([0.2, 0.7]), tokens=tokens, pooled=pooled).square().mean().backward()
    parameters = dict(model.named_parameters())
    without = [name for name, parameter in parameters.items() if parameter.grad is None]
    assert all(name.startswith(family.idle()) for name in without)
    assert without == [
        name for name, parameter in parameters.items() if not parameter.requires_grad and "pos_" not in name
    ]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "sana" else ()) for kind in BUILD]
)
def test_held_out_losses_are_those_of_every_sample_alone(new_task: NewTask, kind: str) -> None:
    task, _ = new_task(kind, "--proportion_empty_prompts", 1.0)
    draw = Draw(torch.tensor([0.2, 0.6], dtype=torch.float64), ((1,), (2,)), torch.device("cpu"))
    model = task.pipeline.transformer
    with torch.no_grad():
        together = task.held_out_losses(model, {"index": torch.tensor([3, 9])}, draw)
        alone = [
            task.held_out_losses(model, {"index": torch.tensor([row])}, draw.sample(place))
            for place, row in enumerate((3, 9))
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
