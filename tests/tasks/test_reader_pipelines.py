"""Parts of a pipeline that change what is trained are followed, or refused by name before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from autoprog_diffusion.data.codecs import normalize
from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.lora import load_any
from autoprog_diffusion.tasks.parts import latent_multiple, native_side
from autoprog_diffusion.tasks.sdxl import TextToImageXL, load_sdxl
from autoprog_diffusion.tasks.stable_diffusion import TextToImage, load_pipeline

from .tiny_folders import LOADERS, edit


def with_denoiser(source: Path, folder: Path, part: str, **settings: Any) -> Path:
    """A copy of a pipeline whose denoiser has other settings, and weights that fit them."""
    shutil.copytree(source, folder)
    index = json.loads((source / "model_index.json").read_text())
    kind = getattr(diffusers, index[part][1])
    config = {**kind.load_config(source, subfolder=part), **settings}
    kind.from_config(config).save_pretrained(folder / part)
    return folder


UNETS: dict[str, tuple[str, dict[str, Any], str]] = {
    "inpainting": ("sd", {"in_channels": 9}, "takes 9 channels but its VAE gives 4: models for inpainting"),
    "variance": ("sd", {"out_channels": 8}, r"gives 8 channels, and only \[4\] are allowed"),
    "classes": ("sd", {"num_class_embeds": 10}, "num_class_embeds=10, a class as input"),
    "noise level": ("sd", {"class_embed_type": "timestep"}, "class_embed_type='timestep', a class or noise level"),
    "LCM": ("sd", {"time_cond_proj_dim": 32}, r"time_cond_proj_dim=32, .*\(LCM\), which no recipe trains"),
    "image": (
        "sd",
        {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 32},
        "encoder_hid_dim_type='image_proj', an image as input",
    ),
    "text": ("sd", {"addition_embed_type": "text", "encoder_hid_dim": 32}, "addition_embed_type='text'.*no recipe"),
    "width": ("sd", {"cross_attention_dim": 48}, "embeddings of width 32, .* cross_attention_dim=48"),
    "LCM of SDXL": ("sdxl", {"time_cond_proj_dim": 32}, "time_cond_proj_dim=32"),
    "width of SDXL": ("sdxl", {"cross_attention_dim": 48}, "cross_attention_dim=48: they belong to different models"),
    "pooled": ("sdxl", {"projection_class_embeddings_input_dim": 1000}, "less six sizes"),
}


def test_a_unet_with_other_inputs_is_refused(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in UNETS:
        tmp_path = tmp_path_factory.mktemp("case")
        kind, settings, message = UNETS[name]
        folder = with_denoiser(folders[kind], tmp_path / "model", "unet", **settings)
        with pytest.raises(GrowthError, match=message):
            LOADERS[kind](str(folder))
        with pytest.raises(GrowthError, match=message):
            load_any(str(folder))


TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "control": (
        "flux",
        {"in_channels": 32, "out_channels": 16},
        "takes 32 channels and gives 16, and its VAE gives 16",
    ),
    "joint": ("flux", {"joint_attention_dim": 48}, "width 24, .* joint_attention_dim=48"),
    "inpainting": ("sd3", {"in_channels": 9}, "takes 9 channels but its VAE gives 4"),
    "pooled": ("sd3", {"pooled_projection_dim": 48}, "width 32, .* pooled_projection_dim=48"),
    "channels": ("dit", {"in_channels": 3}, "takes 3 channels but its VAE gives 4"),
}


def test_a_transformer_with_other_inputs_is_refused(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in TRANSFORMERS:
        tmp_path = tmp_path_factory.mktemp("case")
        kind, settings, message = TRANSFORMERS[name]
        folder = with_denoiser(folders[kind], tmp_path / "model", "transformer", **settings)
        with pytest.raises(GrowthError, match=message):
            LOADERS[kind](str(folder))


VAES: dict[str, tuple[str, dict[str, Any], str]] = {
    "shift": ("sd", {"shift_factor": 0.1}, "shift_factor=0.1, which its pipeline does not follow"),
    "mean": ("sd", {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}, "latents_mean=.*does not follow"),
    "no scale": ("sd", {"scaling_factor": 0.0}, "scaling_factor=0.0: only a number above 0"),
    "a list as scale": ("sd", {"scaling_factor": [1.0]}, r"scaling_factor=\[1.0\]: only a number above 0"),
    "mean alone": ("sdxl", {"latents_mean": [0.1] * 4}, "both or none are needed"),
    "too few": ("sdxl", {"latents_mean": [0.1] * 3, "latents_std": [1.0] * 3}, "one number for each is needed"),
    "shift of SDXL": ("sdxl", {"shift_factor": 0.1}, "shift_factor=0.1"),
    "no shift": ("sd3", {"shift_factor": None}, "no shift_factor, and its pipeline cannot decode without"),
    "shift of DiT": ("dit", {"shift_factor": 0.1}, "shift_factor=0.1"),
}


def test_latents_that_the_pipeline_would_not_undo_are_refused(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in VAES:
        tmp_path = tmp_path_factory.mktemp("case")
        kind, settings, message = VAES[name]
        folder = tmp_path / "model"
        shutil.copytree(folders[kind], folder)
        edit(folder / "vae" / "config.json", **settings)
        with pytest.raises(GrowthError, match=message):
            LOADERS[kind](str(folder))


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_another_vae_is_refused(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders[kind], folder)
    shutil.rmtree(folder / "vae")
    blocks = (4, 4, 4)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=blocks,
        decoder_block_out_channels=blocks,
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    tiny.save_pretrained(folder / "vae")
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    with pytest.raises(GrowthError, match=r"AutoencoderTiny"):
        LOADERS[kind](str(folder))


def test_means_of_latents_are_followed_as_sdxl_undoes_them(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["sdxl"], folder)
    edit(folder / "vae" / "config.json", latents_mean=[0.1, -0.2, 0.3, 0.5], latents_std=[1.0, 2.0, 3.0, 0.5])
    pipeline = load_sdxl(str(folder))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    # The pipeline's own way back, as `output_type` other than "latent" takes it: seen by its VAE.
    seen = []
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda found, **options: seen.append(found) or decode(found, **options)
    undo(pipeline, normalize(latents, pipeline.vae.config))
    torch.testing.assert_close(seen[0], latents, rtol=1e-5, atol=1e-5)


def undo(pipeline: StableDiffusionXLPipeline, latents: torch.Tensor) -> None:
    """Let a pipeline decode latents: no step, and a scheduler that leaves them alone."""
    pipeline.set_progress_bar_config(disable=True)

    def keep(noise: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> tuple[torch.Tensor]:
        return (sample,)

    pipeline.scheduler.step = keep  # type: ignore[method-assign]
    pipeline(["a", "b"], latents=latents, height=32, width=32, num_inference_steps=1, guidance_scale=0.0)


KINDS = {
    "image to image": ("sd", "StableDiffusionImg2ImgPipeline", "says StableDiffusionImg2ImgPipeline. No recipe"),
    "inpainting": (
        "sd",
        "StableDiffusionInpaintPipeline",
        "says StableDiffusionInpaintPipeline. No recipe trains one",
    ),
    "control": ("sd", "StableDiffusionControlNetPipeline", "says StableDiffusionControlNetPipeline"),
    "distilled": ("sd", "LatentConsistencyModelPipeline", "says LatentConsistencyModelPipeline"),
    "refiner": ("sdxl", "StableDiffusionXLImg2ImgPipeline", "says StableDiffusionXLImg2ImgPipeline"),
    "xl": ("sd", "StableDiffusionXLPipeline", "says StableDiffusionXLPipeline. For it use recipes/finetune_sdxl.py"),
    "sd": ("sdxl", "StableDiffusionPipeline", r"says StableDiffusionPipeline. For it use recipes/finetune_sd\.py"),
    "unknown": ("sd", "NoPipeline", "says NoPipeline. No recipe trains one"),
}


def test_another_kind_of_pipeline_is_refused(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in KINDS:
        tmp_path = tmp_path_factory.mktemp("case")
        kind, own, message = KINDS[name]
        folder = tmp_path / "model"
        shutil.copytree(folders[kind], folder)
        edit(folder / "model_index.json", _class_name=own)
        with pytest.raises(GrowthError, match=message):
            LOADERS[kind](str(folder))


def test_text_encoders_of_another_class_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders["sd"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"][1] = "CLIPTextModelWithProjection"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(GrowthError, match="text encoder of .* is a CLIPTextModelWithProjection|lack 1 tensors"):
        load_pipeline(str(folder))


def test_ordinary_pipelines_pass(folders: dict[str, Path]) -> None:
    for kind in LOADERS:
        pipeline = LOADERS[kind](str(folders[kind]))
        parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}


def unet(**config: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**config))


def test_sizes_of_latents() -> None:
    usual = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    assert latent_multiple(unet(up_block_types=usual)) == 1
    assert latent_multiple(unet(up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"))) == 2
    assert latent_multiple(unet(up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))) in (1, 4)
    assert native_side(unet(sample_size=16)) == 16
    assert native_side(unet(sample_size=[16, 16])) == 16
    for size in (None, [16, 32]):
        with pytest.raises(GrowthError, match="give --resolution"):
            native_side(unet(sample_size=size))


def test_usual_blocks_take_any_number_of_latents(folders: dict[str, Path]) -> None:
    for latents in (5, 9, 15, 17):
        model = UNet2DConditionModel.from_pretrained(folders["sd"], subfolder="unet")
        noisy = torch.zeros(1, 4, latents, latents)
        with torch.no_grad():
            assert model(noisy, 3, torch.zeros(1, 4, 32)).sample.shape == noisy.shape


@pytest.mark.parametrize("masked", [False, True])
def test_text_is_encoded_as_the_pipeline_does(folders: dict[str, Path], masked: bool) -> None:
    pipeline: Any = load_pipeline(str(folders["sd"]))
    pipeline.text_encoder.config.use_attention_mask = masked
    captions = ["a red cat", ""]
    wanted, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    task = SimpleNamespace(pipeline=pipeline, latents=SimpleNamespace(accelerator=accelerator))
    tokens, _ = TextToImage.encode(task, captions)  # type: ignore[arg-type]
    assert torch.equal(tokens, wanted)


@pytest.mark.parametrize("zeros", [False, True])
def test_no_caption_is_what_the_guidance_of_sdxl_takes_for_it(folders: dict[str, Path], zeros: bool) -> None:
    pipeline: Any = load_sdxl(str(folders["sdxl"]))
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    tokens, negative, pooled, negative_pooled = pipeline.encode_prompt("a cat", do_classifier_free_guidance=True)
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    task = SimpleNamespace(pipeline=pipeline, latents=SimpleNamespace(accelerator=accelerator), empty=0.1)
    found, found_pooled = TextToImageXL.encode(task, ["a cat", ""])  # type: ignore[arg-type]
    assert torch.allclose(found, torch.cat([tokens, negative]), atol=1e-6)
    assert torch.allclose(found_pooled, torch.cat([pooled, negative_pooled]), atol=1e-6)
