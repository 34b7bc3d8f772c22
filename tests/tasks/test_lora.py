"""Adapters: what trains, what is written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.lora import LoraSettings, add_lora, load_any
from autoprog_diffusion.tasks.lora_file import save_lora

from .denoisers import denoiser_of, output
from .tiny_transformers import build_transformer


SETTINGS = {
    "default": LoraSettings(),
    "alpha": LoraSettings(rank=2, lora_alpha=6.0, lora_dropout=0.3),
    "dora": LoraSettings(rank=2, use_dora=True, init_lora_weights="default"),
}


@pytest.mark.filterwarnings("ignore:.*DoRA.*:UserWarning")
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
def test_the_file_gives_the_trained_model_back(
    folders: dict[str, Path], tmp_path: Path, kind: str, settings: str
) -> None:
    pipeline = load_any(str(folders[kind]))
    denoiser = denoiser_of(pipeline)
    before = output(kind, denoiser)
    frozen = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    add_lora(denoiser, SETTINGS[settings], seed=0)
    torch.testing.assert_close(output(kind, denoiser), before, rtol=1e-5, atol=1e-5)  # it starts as the base model
    trained = [name for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    for name, tensor in frozen.items():
        base = name if name in denoiser.state_dict() else ".base_layer.".join(name.rsplit(".", 1))
        assert torch.equal(denoiser.state_dict()[base], tensor)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    after = output(kind, denoiser)
    assert not torch.allclose(after, before, atol=1e-3)
    save_lora(pipeline, denoiser, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    fresh = load_any(str(folders[kind]))
    fresh.load_lora_weights(tmp_path)
    assert torch.equal(output(kind, denoiser_of(fresh)), after)


def test_the_seed_decides_the_first_values_and_leaves_the_random_state(pipeline_dir: Path) -> None:
    seen, state = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        unet = load_any(str(pipeline_dir)).unet
        torch.set_rng_state(state)
        add_lora(unet, LoraSettings(), seed)
        assert torch.equal(torch.get_rng_state(), state)
        seen.append(torch.cat([p.flatten() for p in unet.parameters() if p.requires_grad]))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


BAD = {
    "rank": (LoraSettings(rank=0), "--rank 0 is not allowed: use a whole number of at least 1"),
    "alpha": (LoraSettings(lora_alpha=0.0), "--lora_alpha 0.0 is not allowed"),
    "dropout": (LoraSettings(lora_dropout=1.0), "--lora_dropout 1.0 is not allowed"),
    "nothing": (LoraSettings(target_modules=("to_k", "query")), "'query' names no linear.*'attn1.to_k'"),
    "part": (LoraSettings(target_modules=("o_k",)), "'o_k' names no linear"),
    "norm": (LoraSettings(target_modules=("norm1",)), "'norm1' names no linear"),
}


def test_settings_that_do_not_fit_are_refused(pipeline_dir: Path) -> None:
    for name in BAD:
        lora, message = BAD[name]
        unet = load_any(str(pipeline_dir)).unet
        with pytest.raises(GrowthError, match=message):
            add_lora(unet, lora, seed=0)
        assert all(parameter.requires_grad for parameter in unet.parameters())


def test_a_model_without_peft_is_refused() -> None:
    with pytest.raises(GrowthError, match="DiTTransformer2DModel takes no PEFT adapters"):
        add_lora(build_transformer(), LoraSettings(), seed=0)


def test_other_pipelines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline", "_diffusers_version": "0.42.1"}')
    with pytest.raises(GrowthError, match="is a DiTPipeline, which this recipe does not train: use one of"):
        load_any(str(tmp_path))
    with pytest.raises(GrowthError, match="holds no Diffusers pipeline"):
        load_any(str(tmp_path / "none"))
