"""Progressive LoRA: PEFT adapters inside a Diffusers model grow block by block, and nothing else moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler, GrowthWarning
from autoprog_diffusion.adapters.saved_embedding import read_embedding
from autoprog_diffusion.growth import OrderError, UnitError

from ..contracts.common import in_turn
from ..settings import BY_ID, Family


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2},
    "dora": {"r": 2, "use_dora": True},
    "patterns": {"r": 2, "rank_pattern": {"to_q": 4}, "alpha_pattern": {"to_v": 8}},
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# Every family with one kind of adapter and every kind with one family in every run of the suite.
adapted = pytest.mark.parametrize(
    ("family", "kind"),
    [
        in_turn(BY_ID[name], kind, name=f"{name}-{kind}", default=name == "sd" or kind == "lora")
        for name in ("sd", "dit", "sd3", "flux", "wan")
        for kind in KINDS
    ],
)


def lora_model(family: Family, kind: str = "lora", **settings: Any) -> nn.Module:
    model = family.build().train().requires_grad_(False)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    config = LoraConfig(target_modules=ATTENTION, init_lora_weights=False, **KINDS[kind], **settings)
    # Diffusers lets some classes (DiT) take no adapters by themselves; PEFT injects them the same way.
    model.add_adapter(config) if hasattr(model, "add_adapter") else inject_adapter_in_model(config, model)
    torch.set_rng_state(state)
    return model


def start(model: nn.Module, **settings: Any) -> tuple[GrowthScheduler, torch.optim.Optimizer]:
    growth = GrowthScheduler(
        model, GrowthConfig(**{"num_stages": 3, "order": "interleaved", "direction": "unfreeze", **settings})
    )
    optimizer = torch.optim.AdamW([p for p in growth.parameters() if p.requires_grad], lr=1e-2)
    growth.prepare(model, num_training_steps=6, optimizer=optimizer)
    return growth, optimizer


@adapted
def test_only_adapters_grow_and_every_stage_opens_some(family: Family, kind: str) -> None:
    model = lora_model(family, kind)
    adapters = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    growth, optimizer = start(model, order="suffix")
    assert growth.layout.names == adapters
    assert all(unit.parameters for unit in growth.layout.blocks)
    named, counts = dict(model.named_parameters()), []
    for step in range(6):
        before = {name: parameter.detach().clone() for name, parameter in named.items()}
        live = {name for name, parameter in named.items() if parameter.requires_grad}
        family.loss(model, step).backward()
        assert {name for name, parameter in named.items() if parameter.grad is not None} == live
        optimizer.step()
        assert {name for name, parameter in named.items() if not torch.equal(parameter, before[name])} == live
        assert live <= adapters
        counts.append(len(live))
        growth.step()
        optimizer.zero_grad()
    assert counts[0] < counts[2] < counts[4] == len(adapters)


@adapted
def test_the_adapters_load_into_a_plain_model(family: Family, kind: str, tmp_path: Path) -> None:
    model = lora_model(family, kind)
    growth, optimizer = start(model)
    for step in range(6):
        family.loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    inputs = family.inputs(7, 2)
    with torch.no_grad():
        trained = family.output(model.eval(), inputs)
        growth.fold(model)
        assert torch.equal(family.output(model, inputs), trained)
    save_file(get_peft_model_state_dict(model), tmp_path / "lora.safetensors")
    plain = lora_model(family, kind)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(not parameter.requires_grad)
    result = set_peft_model_state_dict(plain, load_file(tmp_path / "lora.safetensors"))
    assert not result.unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(family.output(plain.eval(), inputs), trained, rtol=1e-5, atol=1e-6)


def test_a_lora_file_loads_with_the_pipelines_own_loader(tmp_path: Path) -> None:
    model = lora_model(BY_ID["sd"])
    growth, optimizer = start(model)
    BY_ID["sd"].loss(model, 0).backward()
    optimizer.step()
    with pytest.warns(GrowthWarning, match="fold was called after 1 optimizer steps"):
        growth.fold(model)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    alpha = _collate_lora_metadata({"unet": model})
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **alpha)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
    pipeline = diffusers.StableDiffusionPipeline(unet=BY_ID["sd"].build(), requires_safety_checker=False, **parts)
    pipeline.load_lora_weights(tmp_path)
    inputs = BY_ID["sd"].inputs(7, 2)
    with torch.no_grad():
        ours, theirs = model.eval()(**inputs).sample, pipeline.unet.eval()(**inputs).sample
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_blocks_without_adapters_join_their_neighbours() -> None:
    model = lora_model(BY_ID["sd"])
    blocks = GrowthScheduler(model, GrowthConfig()).layout.blocks
    # The first and the last level of this UNet have no attention on the way down and up.
    assert len(blocks) < len(BY_ID["sd"].blocks)
    modules = [module for unit in blocks for module in unit.modules]
    whole = GrowthScheduler(BY_ID["sd"].build(), GrowthConfig()).layout.blocks
    assert modules == [module for unit in whole for module in unit.modules]


def test_a_search_works_on_adapters_alone() -> None:
    model = lora_model(BY_ID["dit"])
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, search="zero_shot"))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=12, optimizer=optimizer)
    for step in range(12):
        BY_ID["dit"].loss(model, step).backward()
        optimizer.step()
        growth.step()
        optimizer.zero_grad()
    named = dict(model.named_parameters())
    assert all(torch.equal(named[name], value) and named[name].grad is None for name, value in frozen.items())
    rows = {row["name"]: row for row in growth.decisions[0]["candidates"]}
    assert rows["full"]["cost"] == max(row["cost"] for row in rows.values())
    assert rows["suffix 1/4"]["cost"] < rows["interleaved 1/4"]["cost"]
    assert all(float(row["gain"]) == float(row["gain"]) for row in rows.values())


def test_a_stage_embedding_is_off_by_default_and_saved_beside_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert start(lora_model(BY_ID["sd"]))[0].stage_embedding is None
    model = lora_model(BY_ID["sd"])
    growth, _ = start(model, stage_embedding=True, stage_embedding_init="normal")
    growth.fold(model)
    said = [record.message for record in caplog.records if "does not hold the stage embedding" in record.message]
    assert len(said) == 2  # at construction and at the fold: nothing is lost, and nothing is lost silently
    growth.save_stage_embedding(tmp_path)
    rows, about = read_embedding(tmp_path)
    assert about == {"points": ["time_embedding.linear_2"], "folded": False}
    assert torch.equal(rows["stage"], growth.stage_embedding.table[0])
    with pytest.raises(OrderError, match="no stage embedding to save"):
        start(lora_model(BY_ID["sd"]))[0].save_stage_embedding(tmp_path)


def test_an_adapted_time_embedder_is_folded_into_its_base() -> None:
    family = BY_ID["sd"]
    model = family.build().train().requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["linear_2", "to_q"], init_lora_weights=False))
    growth, _ = start(model, stage_embedding=True, stage_embedding_init="normal")
    inputs = family.inputs(7, 2)
    with torch.no_grad():
        before = family.output(model.eval(), inputs)
        growth.stage_embedding.saved = True
        growth.fold(model)
        torch.testing.assert_close(family.output(model, inputs), before, rtol=1e-5, atol=1e-6)


def test_the_wrong_order_is_named() -> None:
    model = BY_ID["sd"].build()
    with pytest.raises(OrderError, match="PeftModel of PEFT.*add_adapter"):
        GrowthScheduler(
            get_peft_model(BY_ID["sd"].build(), LoraConfig(target_modules=ATTENTION)),
            GrowthConfig(),
        )
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"))
    model.add_adapter(LoraConfig(r=2, target_modules=ATTENTION))
    with pytest.raises(OrderError, match="parameters changed after GrowthScheduler.*add_adapter"):
        growth.prepare(model, num_training_steps=6)


def test_frozen_and_quantised_models_are_refused() -> None:
    model = BY_ID["sd"].build().requires_grad_(False)
    with pytest.raises(UnitError, match=r"no block of this UNet2DConditionModel holds.*requires_grad_\(True\)"):
        GrowthScheduler(model, GrowthConfig())
    model.mid_block.resnets[0].conv1.weight = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnitError, match="quantised weights cannot train, LoRA adapters on top of them can"):
        GrowthScheduler(model, GrowthConfig())
    model.requires_grad_ = None  # nothing may be unfrozen behind the user's back
    model.add_adapter(LoraConfig(r=2, target_modules=ATTENTION))
    assert GrowthScheduler(model, GrowthConfig()).layout.blocks
