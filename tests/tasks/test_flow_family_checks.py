"""Rows of the families: the shift of time at every size, parts that fit or are refused, and the nearest neighbours."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.families import FAMILY_OF
from autoprog_diffusion.tasks.flow_matching import flow_family, load_flow
from autoprog_diffusion.tasks.flow_pictures import draw_flow
from autoprog_diffusion.tasks.loading import RECIPES, near_names

from .tiny_families import BUILD


LENGTH = 300
# Samplers of Diffusers under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
every = pytest.mark.parametrize("kind", ["flux", *BUILD])
BUILT = {
    "flux2": "Flux2KleinPipeline",
    "qwen_image": "QwenImagePipeline",
    "z_image": "ZImagePipeline",
    "sana": "SanaPipeline",
    "lumina2": "Lumina2Pipeline",
    "wan": "WanPipeline",
}


@every
def test_time_is_shifted_as_the_pipeline_does_at_that_size(family_pipelines: dict[str, Any], kind: str) -> None:
    pipeline = family_pipelines[kind]
    family = flow_family(pipeline)
    steps = 50 if kind == "flux2" else 4
    for side in (32, 64):
        draw_flow(pipeline, ["a"], size=side, steps=steps, guidance=0.0, seed=0, max_sequence_length=LENGTH)
        literal = torch.as_tensor(pipeline.scheduler.sigmas[:steps])
        unshifted = torch.linspace(1, 1 / steps, steps)
        if kind in ("sana", "wan"):  # samplers whose schedule is another
            begin = 1 - 1 / 1000 if kind == "sana" else 1
            unshifted = torch.linspace(begin, begin - 1 + 1 / 1000, steps + 1)[:-1]
        tokens = (side // family.token_side) ** 2
        shift = family.shift(tokens, tokens)
        torch.testing.assert_close(shift * unshifted / (1 + (shift - 1) * unshifted), literal, rtol=1e-4, atol=1e-5)
        assert shift > 1


@pytest.mark.parametrize("kind", ["z_image", "sana", "lumina2", "wan"])
def test_a_static_shift_is_less_at_a_lower_resolution(family_pipelines: dict[str, Any], kind: str) -> None:
    family = flow_family(family_pipelines[kind])
    assert family.shift(16, 64) == pytest.approx(family.shift(64, 64) / 2)


def test_every_family_has_a_recipe_and_its_neighbours_are_named(tmp_path: Path) -> None:
    assert FAMILY_OF.keys() <= RECIPES.keys()
    assert near_names("QwenImageEditPipeline", RECIPES)[0] == "QwenImagePipeline"
    (tmp_path / "model_index.json").write_text('{"_class_name": "ZImageImg2ImgPipeline"}')
    with pytest.raises(GrowthError, match="is a ZImageImg2ImgPipeline: only .* The nearest .*: ZImagePipeline"):
        load_flow(str(tmp_path))


def bad_part(pipeline: Any, monkeypatch: pytest.MonkeyPatch, part: str, **changes: Any) -> None:
    """Change values of a part's configuration for one test."""
    model = getattr(pipeline, part)
    monkeypatch.setattr(model, "_internal_dict", type(model.config)({**model.config, **changes}))


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("qwen_image", {"in_channels": 32}, "takes 32 channels and gives 16, and its VAE gives 16 when packed"),
        ("z_image", {"in_channels": 5}, "takes 5 channels and gives 5, and its VAE gives 4: models for"),
        ("flux2", {"joint_attention_dim": 16}, "width 48, and its denoiser has joint_attention_dim=16"),
        ("sana", {"caption_channels": 8}, "width 16, and its denoiser has caption_channels=8"),
        ("wan", {"text_dim": 8}, "width 16, and its denoiser has text_dim=8"),
        ("wan", {"in_channels": 36}, "takes 36 channels and gives 4, and its VAE gives 4: models for"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    family_pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, setting: dict[str, int], message: str
) -> None:
    pipeline = family_pipelines[kind]
    bad_part(pipeline, monkeypatch, "transformer", **setting)
    with pytest.raises(GrowthError, match=message):
        flow_family(pipeline).check("x")


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("qwen_image", {"latents_mean": [0.1]}, r"has latents_mean=\[0.1\], and its latents have 4 channels"),
        ("wan", {"latents_std": None}, "latents_std=None: both or none are needed"),
        ("sana", {"scaling_factor": 0.0}, "has scaling_factor=0.0: only a number above 0"),
        ("z_image", {"shift_factor": None}, "has no shift_factor"),
    ],
)
def test_scales_of_a_vae_that_are_none_are_refused(
    family_pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, setting: dict[str, Any], message: str
) -> None:
    bad_part(family_pipelines[kind], monkeypatch, "vae", **setting)
    with pytest.raises(GrowthError, match=message):
        flow_family(family_pipelines[kind]).check("x")


def defaults(name: str, **changes: Any) -> Any:
    """A part with the configuration that its class has by itself: the published sizes."""
    settings = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    found = {setting.name: setting.default for setting in settings if setting.default is not setting.empty}
    return SimpleNamespace(config=FrozenDict({**found, **changes}))


@pytest.mark.parametrize("name", ["FluxPipeline", *(BUILT[kind] for kind in BUILD)])
def test_published_sizes_fit(name: str) -> None:
    kind = FAMILY_OF[name]
    changes = {"latent_channels": 16} if kind.vae_class == "AutoencoderKL" else {}
    parts = {"transformer": defaults(kind.transformer_class), "vae": defaults(kind.vae_class, **changes)}
    kind(SimpleNamespace(**parts), 1.0).check_latents("x")


def test_a_scheduler_of_another_process_is_refused(
    family_pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = family_pipelines["sana"]
    bad_part(pipeline, monkeypatch, "scheduler", use_flow_sigmas=False)
    with pytest.raises(GrowthError, match="DPMSolverMultistepScheduler with use_flow_sigmas=False, which is no flow"):
        flow_family(pipeline).check("x")


def test_a_wan_of_two_transformers_is_refused(
    family_pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = family_pipelines["wan"]
    monkeypatch.setattr(pipeline, "transformer_2", pipeline.transformer)
    with pytest.raises(GrowthError, match="x has two transformers"):
        flow_family(pipeline).check("x")
