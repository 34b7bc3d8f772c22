"""A LoRA file gives back what was trained: every tensor is used, and the output is the same, bit for bit."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.lora import LoraSettings, add_lora, load_any
from autoprog_diffusion.tasks.lora_file import WEIGHTS_FILE, check_lora_file, check_lora_saves, part_name, save_lora

from .denoisers import denoiser_of, output
from .tiny import build_sdxl
from .tiny_transformers import build_flux, build_sd3, save


KINDS = ("sd", "sdxl", "sd3", "flux")
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
# What the LoRA recipe trains by default.
SMALL_UNET = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut")


@pytest.fixture(scope="module")
def pipelines(pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("pipelines")
    folders = {
        "sd": pipeline_dir,
        "sdxl": build_sdxl(root / "sdxl"),
        "sd3": save(root / "sd3", build_sd3),
        "flux": save(root / "flux", build_flux),
    }
    return {kind: load_any(str(folder)) for kind, folder in folders.items()}


def layers_of(denoiser: nn.Module) -> tuple[str, ...]:
    """Endings of the names of all layers that can be adapted: attention, convolutions, projections, embedders."""
    endings = set()
    for name, module in denoiser.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            *_, parent, leaf = ("", *name.split("."))
            endings.add(f"{parent}.{leaf}" if leaf.isdigit() else leaf)
    return tuple(sorted(endings))


def train(denoiser: nn.Module) -> None:
    """Any values but the first ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def check_round_trip(kind: str, trained: Any, plain: DiffusionPipeline, folder: Path) -> None:
    """Save with the recipe's function, load with Diffusers alone, and compare."""
    denoiser = denoiser_of(trained)
    wanted = output(kind, denoiser)
    assert not torch.allclose(wanted, output(kind, denoiser_of(plain)), atol=1e-3)
    save_lora(trained, denoiser, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.load_lora_weights(folder)  # type: ignore[attr-defined]
    loaded = denoiser_of(plain)
    found = get_peft_model_state_dict(loaded, adapter_name="default_0")
    part = part_name(trained, denoiser)
    assert set(load_file(folder / WEIGHTS_FILE)) == {f"{part}.{key}" for key in found}
    assert torch.equal(output(kind, loaded), wanted)


def fresh(pipelines: dict[str, Any], kind: str) -> tuple[Any, Any]:
    """Two copies of a pipeline: one to train, one as a user loads it."""
    return copy.deepcopy(pipelines[kind]), copy.deepcopy(pipelines[kind])


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"lora_alpha": 6.0, "lora_dropout": 0.3},
    "dora": {"use_dora": True},
}


@pytest.mark.filterwarnings("ignore:.*DoRA.*:UserWarning")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_together(pipelines: dict[str, Any], tmp_path: Path, kind: str, settings: str) -> None:
    trained, plain = fresh(pipelines, kind)
    denoiser = denoiser_of(trained)
    targets = layers_of(denoiser)
    add_lora(denoiser, LoraSettings(rank=2, target_modules=targets, **SETTINGS[settings]), seed=0)
    train(denoiser)
    check_round_trip(kind, trained, plain, tmp_path)


TARGETS: dict[str, tuple[str, Sequence[str]]] = {
    "default": ("sd", SMALL_UNET),
    "attention": ("sd", ATTENTION),
    "projection": ("sd", ("to_q", "proj_in")),
    "convolutions": ("sd", ("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out")),
    "feed forward": ("sd", ("ff.net.0.proj", "ff.net.2", "proj_out")),
    "time": ("sd", ("time_embedding.linear_1", "time_emb_proj")),
    "one layer": ("sd", ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q",)),
    "sdxl": ("sdxl", ("to_q", "to_k", "conv1")),
    "sdxl sizes": ("sdxl", ("add_embedding.linear_1", "to_v")),
    "sd3 context": ("sd3", ("add_k_proj", "to_add_out", "to_q", "proj_out")),
    "flux single": ("flux", ("proj_mlp", "proj_out", "norm.linear", "x_embedder")),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(pipelines: dict[str, Any], tmp_path: Path, name: str) -> None:
    kind, targets = TARGETS[name]
    trained, plain = fresh(pipelines, kind)
    add_lora(denoiser_of(trained), LoraSettings(rank=2, target_modules=tuple(targets)), seed=0)
    train(denoiser_of(trained))
    check_round_trip(kind, trained, plain, tmp_path)


# Adapters of the user's own, by `model.add_adapter`.
CONFIGS: dict[str, dict[str, Any]] = {
    "ranks": {"rank_pattern": {"to_q": 4, "to_k": 3}},
    "alphas": {"rank_pattern": {"to_q": 4}, "alpha_pattern": {"to_k": 7, "to_q": 1}, "lora_alpha": 3},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "magnitudes": {"use_rslora": True, "use_dora": True, "rank_pattern": {"to_q": 4}, "alpha_pattern": {"to_k": 7}},
    "expression": {"target_modules": r".*\.to_q"},
}


@pytest.mark.filterwarnings("ignore:.*DoRA.*:UserWarning")
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_ranks_and_scales(pipelines: dict[str, Any], tmp_path: Path, kind: str, name: str) -> None:
    trained, plain = fresh(pipelines, kind)
    denoiser = denoiser_of(trained)
    denoiser.requires_grad_(False)
    targets = ["to_q", "to_k", "conv1"] if kind == "sd" else ["to_q", "to_k", "proj"]
    denoiser.add_adapter(LoraConfig(**{"r": 2, "target_modules": targets, **CONFIGS[name]}))
    train(denoiser)
    check_round_trip(kind, trained, plain, tmp_path)


def test_half_precision_comes_back(pipelines: dict[str, Any], tmp_path: Path) -> None:
    trained, plain = fresh(pipelines, "sd")
    unet = trained.unet
    add_lora(unet, LoraSettings(rank=2, target_modules=SMALL_UNET), seed=0)
    train(unet)
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    save_lora(trained, unet, tmp_path)
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS_FILE).values()} == {torch.bfloat16}
    plain.load_lora_weights(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": "all"}, "Diffusers cannot load the LoRA"),
        ({"modules_to_save": ["conv_norm_out"]}, "Diffusers cannot load the LoRA"),
    ],
)
def test_adapters_that_no_file_holds_are_refused(
    pipelines: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    trained, _ = fresh(pipelines, "sd")
    trained.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], **settings))
    with pytest.raises(GrowthError, match=message):
        check_lora_saves(trained, trained.unet)


def written(pipeline: Any, folder: Path) -> Path:
    save_lora(pipeline, pipeline.unet, folder)
    return folder


def test_a_file_that_loads_in_part_is_an_error(pipelines: dict[str, Any], tmp_path: Path) -> None:
    """The way of Diffusers' own script: names of attention changed, those of convolutions not."""
    trained, _ = fresh(pipelines, "sd")
    add_lora(trained.unet, LoraSettings(rank=2, target_modules=SMALL_UNET), seed=0)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained.unet))
    trained.save_lora_weights(tmp_path, unet_lora_layers=layers)
    with pytest.raises(GrowthError, match=r"of \d+ tensors in .* Diffusers does not use|do not come back"):
        check_lora_file(trained, trained.unet, tmp_path)


def test_a_changed_value_is_an_error(pipelines: dict[str, Any], tmp_path: Path) -> None:
    trained, _ = fresh(pipelines, "sd")
    add_lora(trained.unet, LoraSettings(rank=2), seed=0)
    written(trained, tmp_path)
    train(trained.unet)
    with pytest.raises(GrowthError, match=r"of \d+ tensors of the LoRA \d+ do not come back"):
        check_lora_file(trained, trained.unet, tmp_path)


def test_a_lost_scale_is_an_error(pipelines: dict[str, Any], tmp_path: Path) -> None:
    trained, _ = fresh(pipelines, "sd")
    add_lora(trained.unet, LoraSettings(rank=2, lora_alpha=5.0), seed=0)
    trained.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(trained.unet))
    with pytest.raises(GrowthError, match="do not come back"):
        check_lora_file(trained, trained.unet, tmp_path)


def test_reading_back_leaves_the_model_as_it_is(pipelines: dict[str, Any]) -> None:
    trained, _ = fresh(pipelines, "sd")
    unet = trained.unet
    add_lora(unet, LoraSettings(rank=2), seed=0)
    before = output("sd", unet)
    modes = [parameter.requires_grad for parameter in unet.parameters()]
    names = list(unet.state_dict())
    check_lora_saves(trained, unet)
    assert trained.unet is unet
    assert list(unet.state_dict()) == names
    assert [parameter.requires_grad for parameter in unet.parameters()] == modes
    assert torch.equal(output("sd", unet), before)
