"""Text encoders and VAE in the type of their files: no float32 copy, nothing lost, and saved as they were."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.data.placement import hold_as_stored, is_narrow, keep_on_device, on_device
from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.training.plain_pipeline import save_plain
from autoprog_diffusion.training.samples import draw_prompts

from .tiny_folders import LOADERS


KINDS = ("sd", "sdxl", "sd3", "flux")
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def encoders(pipeline: Any) -> dict[str, nn.Module]:
    parts = pipeline.components.items()
    return {name: part for name, part in parts if name.startswith("text_encoder") and part is not None}


def halved(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A copy of a pipeline whose files hold another type."""
    shutil.copytree(source, folder)
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: _cast(value, dtype) for name, value in tensors.items()}, file, {"format": "pt"})
    return folder


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def as_a_recipe_does(kind: str, folder: str, **options: Any) -> Any:
    """A pipeline whose parts are held as they are stored."""
    pipeline = LOADERS[kind](folder, **options)
    hold_as_stored(pipeline.components.values())
    return pipeline


def test_a_pipeline_is_loaded_in_float32_for_other_uses(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for kind in KINDS:
        tmp_path = tmp_path_factory.mktemp("case")
        pipeline = LOADERS[kind](str(halved(folders[kind], tmp_path / "half", torch.float16)))
        modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        assert {value.dtype for module in modules for value in module.parameters()} == {torch.float32}
        assert not any(map(is_narrow, modules))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_they_stay_as_they_are_stored(folders: dict[str, Path], tmp_path: Path, kind: str, dtype: str) -> None:
    folder = halved(folders[kind], tmp_path / "half", HALVES[dtype])
    plain = as_a_recipe_does(kind, str(folder))
    pipeline = as_a_recipe_does(kind, str(folder), text_encoder_dtype="stored")
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            trains = name in ("unet", "transformer")
            assert {value.dtype for value in module.parameters()} == {torch.float32 if trains else HALVES[dtype]}, name
            # Text encoders compute in it, the VAE does not.
            assert is_narrow(module) == (not trains and name not in encoders(pipeline)), name
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    save_plain(pipeline, denoiser, tmp_path / "out")
    for name, module in encoders(pipeline).items():
        with on_device([encoders(plain)[name]], torch.device("cpu")):
            for value, other in zip(module.parameters(), encoders(plain)[name].parameters(), strict=True):
                assert other.dtype == torch.float32
                assert torch.equal(value.float(), other)
        saved = load_file(tmp_path / "out" / name / "model.safetensors")
        stored = load_file(folder / name / "model.safetensors")
        assert saved.keys() == stored.keys()
        assert all(torch.equal(saved[key], stored[key]) and saved[key].dtype == stored[key].dtype for key in saved)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_vae_stays_as_it_is_stored(folders: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    folder = halved(folders["sdxl"], tmp_path / "half", HALVES[dtype])
    plain = as_a_recipe_does("sdxl", str(folder))
    pipeline = as_a_recipe_does("sdxl", str(folder), vae_dtype="stored")
    assert pipeline.vae.dtype == HALVES[dtype]
    assert (is_narrow(plain.vae), is_narrow(pipeline.vae)) == (True, False)
    save_plain(pipeline, pipeline.unet, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors")
    stored = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[key], stored[key]) and saved[key].dtype == stored[key].dtype for key in saved)


def test_latents_are_float32_and_a_vae_that_overflows_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = halved(folders["sdxl"], tmp_path / "half", torch.float16)
    vae = as_a_recipe_does("sdxl", str(folder), vae_dtype="stored").vae
    latents: Any = SimpleNamespace(vae=vae, accelerator=SimpleNamespace(device=torch.device("cpu")))
    pixels = torch.rand(2, 3, 64, 64)
    moments = Latents._moments(latents, pixels)
    with torch.no_grad():
        wide = copy.deepcopy(vae).float().encode(pixels).latent_dist.parameters
    assert moments.dtype == torch.float32
    assert torch.allclose(moments, wide, atol=0.02 * float(wide.abs().max()))
    with torch.no_grad():
        vae.quant_conv.weight.fill_(6e4)
    with pytest.raises(DataError, match="VAE overflows in torch.float16: use --vae_dtype float32"):
        Latents._moments(latents, pixels)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_held_as_stored_and_compute_and_are_saved_in_float32(
    folders: dict[str, Path], tmp_path: Path, kind: str, dtype: str
) -> None:
    folder = halved(folders[kind], tmp_path / "half", HALVES[dtype])
    pipeline = as_a_recipe_does(kind, str(folder))
    parts = {"vae": pipeline.vae, **encoders(pipeline)}
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    assert {part.dtype for part in parts.values()} == {HALVES[dtype]}
    assert denoiser.dtype == torch.float32
    save_plain(pipeline, denoiser, tmp_path / "out")
    with on_device(list(parts.values()), torch.device("cpu")):
        for name, part in parts.items():
            (file,) = (tmp_path / "out" / name).glob("*.safetensors")
            (source,) = (folder / name).glob("*.safetensors")
            saved = load_file(file)
            stored = load_file(source)
            state = part.state_dict()
            assert saved.keys() == stored.keys()
            for key, value in stored.items():
                wide = value.float() if value.is_floating_point() else value
                assert torch.equal(saved[key], wide)
                assert torch.equal(state[key], wide)
    assert {part.dtype for part in parts.values()} == {HALVES[dtype]}
    # A VAE that encodes in every step stays in float32.
    keep_on_device(pipeline.vae, torch.device("cpu"))
    assert (pipeline.vae.dtype, is_narrow(pipeline.vae)) == (torch.float32, False)


def test_no_float32_copy_is_made_on_the_way(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = halved(folders["flux"], tmp_path / "half", torch.bfloat16)
    widened: list[nn.Module] = []
    wide = nn.Module.float

    def note(module: nn.Module) -> nn.Module:
        widened.append(module)
        return wide(module)

    monkeypatch.setattr(nn.Module, "float", note)
    pipeline = as_a_recipe_does("flux", str(folder), text_encoder_dtype="stored", vae_dtype="stored")
    for part in (pipeline.vae, *encoders(pipeline).values()):
        assert part not in widened
    assert pipeline.transformer in widened or pipeline.transformer.dtype == torch.float32


@pytest.mark.parametrize("kind", ["sd", "flux"])
def test_pictures_are_those_of_float32(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = halved(folders[kind], tmp_path / "half", torch.bfloat16)
    pictures = []
    for dtype in ("float32", "stored"):
        pipeline = as_a_recipe_does(kind, str(folder), text_encoder_dtype=dtype)
        with on_device([pipeline.vae, *encoders(pipeline).values()], torch.device("cpu"), dtype=torch.float32):
            images = draw_prompts(pipeline, ["a"], size=64, steps=1, guidance=1.0, seed=0)
        pictures.append(images[0].tobytes())
    assert pictures[0] == pictures[1]


def test_float32_files_are_float32(folders: dict[str, Path]) -> None:
    pipeline = as_a_recipe_does("sd", str(folders["sd"]), text_encoder_dtype="stored", vae_dtype="stored")
    assert pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.float32


@pytest.mark.parametrize("flag", ["text_encoder_dtype", "vae_dtype"])
def test_a_single_file_is_refused(tmp_path: Path, flag: str) -> None:
    with pytest.raises(GrowthError, match=f"--{flag} stored needs a folder"):
        as_a_recipe_does("sd", str(tmp_path / "model.safetensors"), **{flag: "stored"})
