"""A model's name: folders of a variant, single files, LoRA files, and folders that lack something."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.class_conditional import load_dit
from autoprog_diffusion.tasks.flow_matching import load_flow
from autoprog_diffusion.tasks.lora import LoraSettings, add_lora, load_any
from autoprog_diffusion.tasks.lora_file import save_lora
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.training.samples import sampling


UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy_of(pipeline_dir: Path, tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        shutil.copytree(pipeline_dir, tmp_path / "model")
        return tmp_path / "model"

    return make


@pytest.fixture(scope="module")
def half_dir(pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds weights of the variant fp16 only."""
    folder = tmp_path_factory.mktemp("half")
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_dir, safety_checker=None, torch_dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16")
    return folder


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_a_folder_of_one_variant_is_loaded(half_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline: Any = load_pipeline(str(half_dir))
    assert "holds only weights of the variant fp16: they are loaded" in capsys.readouterr().out
    named: Any = load_pipeline(str(half_dir), variant="fp16")
    assert pipeline.unet.dtype == torch.float32
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(pipeline, part), getattr(named, part))
    assert load_any(str(half_dir)).unet.dtype == torch.float32


def test_a_part_of_one_variant_is_loaded(half_dir: Path, tmp_path: Path, pipeline_dir: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(half_dir, folder)
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    shutil.copy(pipeline_dir / "vae" / "diffusion_pytorch_model.safetensors", folder / "vae")
    assert same(load_pipeline(str(folder)).unet, load_pipeline(str(half_dir)).unet)


def test_both_are_there_and_the_plain_one_counts(half_dir: Path, copy_of: Callable[[], Path]) -> None:
    folder = copy_of()
    plain = load_pipeline(str(folder))
    for part in ("unet", "vae", "text_encoder"):
        for file in (half_dir / part).glob("*.safetensors"):
            shutil.copy(file, folder / part)
    assert same(load_pipeline(str(folder)).unet, plain.unet)
    assert not same(load_pipeline(str(folder), variant="fp16").unet, plain.unet)


def test_a_variant_that_is_not_there_is_refused(half_dir: Path, pipeline_dir: Path) -> None:
    with pytest.raises(GrowthError, match=r"--variant bf16 is not allowed: .* has the variants \['fp16'\]"):
        load_pipeline(str(half_dir), variant="bf16")
    with pytest.raises(GrowthError, match=r"--variant fp16 is not allowed: .* has the variants \[\]. Leave"):
        load_pipeline(str(pipeline_dir), variant="fp16")


def test_two_variants_are_a_choice(half_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    shutil.copytree(half_dir, folder)
    for file in list(folder.rglob("*.fp16.safetensors")):
        shutil.copy(file, file.with_name(file.name.replace("fp16", "ema")))
    with pytest.raises(
        GrowthError, match=r"weights of the variants \['ema', 'fp16'\] only: choose one with --variant"
    ):
        load_pipeline(str(folder))


def test_parts_that_are_missing_are_named(copy_of: Callable[[], Path]) -> None:
    folder = copy_of()
    (folder / UNET).unlink()
    with pytest.raises(GrowthError, match="/unet holds no weights"):
        load_pipeline(str(folder))
    shutil.rmtree(folder / "unet")
    with pytest.raises(GrowthError, match=r"its model_index.json names unet, and there is no unet/"):
        load_pipeline(str(folder))


def test_weights_that_are_missing_are_not_drawn_at_random(copy_of: Callable[[], Path]) -> None:
    folder = copy_of()
    for part, file in (("vae", "diffusion_pytorch_model"), ("unet", "diffusion_pytorch_model")):
        path = folder / part / f"{file}.safetensors"
        weights = load_file(path)
        kept = dict(weights)
        gone = next(iter(kept))
        del kept[gone]
        save_file(kept, path, metadata={"format": "pt"})
        with pytest.raises(GrowthError, match=f"is incomplete: the files of {part} lack 1 tensors.*{gone}"):
            load_pipeline(str(folder))
        save_file(weights, path, metadata={"format": "pt"})
    load_pipeline(str(folder))


def test_old_names_of_a_vae_s_attention_are_not_missing(copy_of: Callable[[], Path]) -> None:
    folder = copy_of()
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for key, value in load_file(path).items():
        for today, before in names.items():
            key = key.replace(today, before)
        old[key] = value
    assert any(".query." in key for key in old)
    save_file(old, path, metadata={"format": "pt"})
    load_pipeline(str(folder))


def test_a_torn_or_foreign_file_is_named(copy_of: Callable[[], Path]) -> None:
    folder = copy_of()
    (folder / UNET).write_bytes(b"nothing")
    with pytest.raises(GrowthError, match="cannot be loaded as a Stable Diffusion pipeline"):
        load_pipeline(str(folder))
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(GrowthError, match="cannot be loaded as a Stable Diffusion pipeline"):
        load_pipeline(str(folder))


NOT_A_PIPELINE = {
    "part": ("unet", "It is one part of a pipeline, a UNet2DConditionModel: give the folder above it"),
    "text": ("text_encoder", "It is one part of a pipeline, a CLIPTextModel"),
    "scheduler": ("scheduler", "Give a folder that Diffusers' save_pretrained has written"),
}


@pytest.mark.parametrize("name", NOT_A_PIPELINE)
def test_a_part_as_the_model_is_refused(pipeline_dir: Path, name: str) -> None:
    part, message = NOT_A_PIPELINE[name]
    with pytest.raises(GrowthError, match=f"cannot be loaded as .*holds no model_index.json. {message}"):
        load_pipeline(str(pipeline_dir / part))
    for load in (load_any, load_flow, load_dit):
        with pytest.raises(GrowthError, match=message):
            load(str(pipeline_dir / part))


@pytest.fixture(scope="module")
def lora_dir(pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    pipeline = load_pipeline(str(pipeline_dir))
    add_lora(pipeline.unet, LoraSettings(), seed=0)
    save_lora(pipeline, pipeline.unet, folder)
    return folder


def test_a_lora_as_the_model_is_refused(lora_dir: Path) -> None:
    for name in (lora_dir, lora_dir / "pytorch_lora_weights.safetensors"):
        for load in (load_pipeline, load_any, load_flow):
            with pytest.raises(GrowthError, match="is a LoRA: give the pipeline that it was trained on"):
                load(str(name))


def test_a_checkpoint_of_a_run_as_the_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "complete.json").write_text("{}")
    with pytest.raises(GrowthError, match="It is a checkpoint of a run: give the run's model"):
        load_pipeline(str(tmp_path))


def checkpoint(path: Path, *names: str) -> str:
    """A checkpoint of one file, by the names of its tensors."""
    save_file({name: torch.zeros(1) for name in names}, path)
    return str(path)


def test_single_files_say_how_to_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = {"cache_dir": str(tmp_path / "hub")}
    old = checkpoint(
        tmp_path / "v1.safetensors", "model.diffusion_model.a", "cond_stage_model.b", "first_stage_model.c"
    )
    message = r"checkpoint of a single file.*Convert it once .*StableDiffusionPipeline as P; P.from_single_file\('.*v1"
    for load in (load_pipeline, load_any):
        with pytest.raises(GrowthError, match=message):
            load(old, **options)
    large = checkpoint(tmp_path / "xl.safetensors", "model.diffusion_model.a", "conditioner.embedders.0.b")
    with pytest.raises(
        GrowthError, match=r"it holds a StableDiffusionXLPipeline. For it use recipes/finetune_sdxl.py"
    ):
        load_pipeline(large, **options)
    torch.save({"state_dict": {}}, tmp_path / "v1.ckpt")
    with pytest.raises(GrowthError, match=r"checkpoint of a single file.*save_pretrained\('.*v1'\)"):
        load_pipeline(str(tmp_path / "v1.ckpt"), **options)
    with pytest.raises(GrowthError, match="v1.ckpt does not say what it holds: convert it to a folder"):
        load_any(str(tmp_path / "v1.ckpt"), **options)


def test_files_that_hold_no_pipeline_are_refused(tmp_path: Path, pipeline_dir: Path) -> None:
    with pytest.raises(GrowthError, match="holds no whole pipeline .*give the folder with the model_index.json"):
        load_pipeline(str(pipeline_dir / UNET))
    (tmp_path / "torn.safetensors").write_bytes(b"123")
    with pytest.raises(GrowthError, match=r"torn.safetensors cannot be loaded as a checkpoint"):
        load_pipeline(str(tmp_path / "torn.safetensors"))
    for ending in ("safetensors", "ckpt"):
        with pytest.raises(GrowthError, match=f"none.{ending} does not exist"):
            load_pipeline(str(tmp_path / f"none.{ending}"))
    checkpoint(tmp_path / "v1.safetensors", "cond_stage_model.b")
    with pytest.raises(GrowthError, match=r"It holds checkpoint files: give one of them, for example .*safetensors"):
        load_pipeline(str(tmp_path))


@pytest.fixture(scope="module")
def checked_dir(pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with a safety checker."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPTextConfig

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config = CLIPConfig(
        text_config=CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=16,
    )
    own: Any = StableDiffusionPipeline.from_pretrained(pipeline_dir, safety_checker=None)
    parts = {
        "safety_checker": StableDiffusionSafetyChecker(config),
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }
    folder = tmp_path_factory.mktemp("checked")
    StableDiffusionPipeline(**{**own.components, **parts}).save_pretrained(folder)
    return folder


def test_a_safety_checker_is_kept_and_waits(checked_dir: Path, tmp_path: Path) -> None:
    pipeline: Any = load_pipeline(str(checked_dir))
    checker = pipeline.safety_checker
    assert checker is not None
    with sampling(pipeline):
        assert pipeline.safety_checker is None
    assert pipeline.safety_checker is checker
    pipeline.save_pretrained(tmp_path)
    for folder in (checked_dir, tmp_path):
        index = json.loads((folder / "model_index.json").read_text())
        assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
        assert index["requires_safety_checker"] is True
    saved: Any = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert same(saved.safety_checker, checker)
    assert saved.feature_extractor.to_dict() == pipeline.feature_extractor.to_dict()


def test_a_safety_checker_that_was_deleted_is_not_needed(
    checked_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checked_dir, folder)
    shutil.rmtree(folder / "safety_checker")
    assert load_pipeline(str(folder)).safety_checker is None
    assert "lacks safety_checker: it is trained and saved without" in capsys.readouterr().out
