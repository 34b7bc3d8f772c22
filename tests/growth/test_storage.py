"""Small storage of the frozen weights of a model: averages, adapters, searches and budgets beside it; refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import ConfigError, OrderError
from autoprog_diffusion.growth.storage.checks import check_storage

from .looping import DIT, SD, SMALL, Small, scheduler


pytestmark = pytest.mark.smoke


def begin(dtype: Any, steps: int = 8, **settings: Any) -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
    return begin_with(SMALL.build().train(), dtype, steps, **settings)


def begin_with(
    model: nn.Module, dtype: Any, steps: int = 8, **settings: Any
) -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
    if settings.get("direction") != "window":
        settings["min_trainable"] = 0.5
    config = GrowthConfig(num_stages=2, stage_embedding=False, frozen_dtype=dtype, **settings)
    growth = scheduler(model, config)
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer)
    return model, growth, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = SMALL.loss(model, seed)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_after_the_last_step_all_weights_are_exact(dtype: Any) -> None:
    model, growth, optimizer = begin(dtype)
    for seed in range(8):
        train(model, optimizer, seed)
        growth.step()
    exact = model.state_dict()
    types = {parameter.dtype for parameter in model.parameters()}
    assert types == {torch.float32}
    for name, parameter in model.named_parameters():
        assert torch.equal(exact[name], parameter)
    growth.fold(model)


@pytest.mark.parametrize("direction", ["freeze", "unfreeze", "window"])
def test_an_average_is_the_one_of_exact_weights(direction: str) -> None:
    averages = []
    for dtype in (None, "bfloat16"):
        model = SMALL.build().train()
        ema = EMAModel(model.parameters())
        model, growth, optimizer = begin_with(model, dtype, direction=direction)
        for seed in range(8):
            train(model, optimizer, seed)
            ema.step(growth.ema_parameters())
            growth.step()
        ema.copy_to(model.parameters())
        growth.fold(model)
        averages.append(model.state_dict())
    for name, plain in averages[0].items():
        assert torch.equal(plain, averages[1][name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_an_average_is_validated_with_exact_weights(dtype: Any) -> None:
    model = SMALL.build().train()
    ema = EMAModel(model.parameters())
    model, growth, optimizer = begin_with(model, dtype, direction="window")
    train(model, optimizer, 0)
    ema.step(growth.ema_parameters())
    growth.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {layer.weight for layer in growth._storage._layers if layer.stored}
    held = {name for name, parameter in model.named_parameters() if parameter in weights}
    with growth.exact_weights(), torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name, value in before.items():
        if not model.get_parameter(name).requires_grad and name in held:
            assert torch.equal(model.state_dict()[name], value), name
    model.load_state_dict(before)
    with growth.exact_weights():
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
        for parameter, average in zip(model.parameters(), ema.shadow_params):
            assert torch.equal(parameter, average)
        ema.restore(model.parameters())
    assert [layer for layer in growth._storage._layers if layer.stored]
    after = model.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    train(model, optimizer, 1)
    growth.step()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_an_average_that_begins_with_small_weights_is_refused(dtype: Any) -> None:
    model, growth, optimizer = begin(dtype, direction="window")
    ema = EMAModel(model.parameters())
    train(model, optimizer, 0)
    ema.step(growth.ema_parameters())
    with pytest.raises(OrderError, match="was built after growth.prepare, from frozen weights that are held small"):
        growth.step()


def test_an_average_of_small_weights_is_refused_in_every_direction() -> None:
    model = SMALL.build().train()
    ema = EMAModel(model.parameters())
    model, growth, optimizer = begin_with(model, "bfloat16", direction="unfreeze")
    train(model, optimizer, 0)
    ema.step(model.parameters())
    with pytest.raises(OrderError, match=r"write ema_unet.step\(growth.ema_parameters\(\)\)"):
        growth.step()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_what_opens_later_loads_its_optimizer_state_in_its_own_type(dtype: Any) -> None:
    """torch casts a loaded state to the type of the parameter, which is small while it is frozen."""
    model, growth, optimizer = begin(dtype, direction="unfreeze")
    moments = {}
    for seed in range(6):
        train(model, optimizer, seed)
        growth.step()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), growth.state_dict()))
    for name, parameter in model.named_parameters():
        moments[name] = optimizer.state[parameter]["exp_avg"].clone()
    model, growth, optimizer = begin(dtype, direction="unfreeze")
    assert growth.stage == 0
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    growth.load_state_dict(saved[2])
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_frozen_base_of_adapters_is_held_small(dtype: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(0)
    model: Any = SD.build().train()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, frozen_dtype=dtype))
    optimizer = torch.optim.AdamW(parameter for parameter in growth.parameters() if parameter.requires_grad)
    growth.prepare(model, num_training_steps=2, optimizer=optimizer)
    base = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    held = sum(layer.weight.numel() for layer in growth._storage._layers if layer.stored)
    assert held > 0.8 * base
    for seed in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = SD.loss(model, seed)
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    growth.fold(model)
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_layers_whose_weight_an_adapter_reads_are_left_alone() -> None:
    from peft import LoraConfig

    model: Any = SD.build().train()
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True))
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, frozen_dtype="int8"))
    optimizer = torch.optim.AdamW(parameter for parameter in growth.parameters() if parameter.requires_grad)
    growth.prepare(model, num_training_steps=2, optimizer=optimizer)
    held = {layer.weight for layer in growth._storage._layers}
    names = [name for name, parameter in model.named_parameters() if parameter in held]
    assert names
    assert not [name for name in names if "to_q.base_layer" in name]
    assert torch.isfinite(SD.loss(model, 0))


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    model = Small()
    model.transformer_blocks[1].to_q.weight = model.transformer_blocks[1].to_q.weight
    model.proj_out.weight = model.pos_embed.weight
    growth = scheduler(model, GrowthConfig(num_stages=2, frozen_dtype="bfloat16", stage_embedding=False))
    growth.prepare(model, num_training_steps=2, optimizer=torch.optim.SGD(growth.parameters(), lr=0.1))
    assert len(growth._storage._layers) == 8


def test_a_line_says_how_much_is_held_small() -> None:
    model, growth, optimizer = begin("bfloat16", steps=2)
    train(model, optimizer, 0)
    growth.step()
    assert growth._storage.describe() == (
        "4 of 9 layers are frozen and held in bfloat16: 0.0 MB instead of 0.0 MB; 1 other layers never are"
    )


class Precision:
    """The member of an accelerator that says in which type it computes."""

    def __init__(self, mixed_precision: str) -> None:
        self.mixed_precision = mixed_precision


@pytest.mark.parametrize("precision", ["no", "fp16"])
def test_bfloat16_without_its_autocast_is_refused(precision: str) -> None:
    with pytest.raises(OrderError, match=f"mixed_precision='{precision}': use Accelerator"):
        check_storage("bfloat16", Precision(precision), nn.Linear(2, 2))
    check_storage("int8", Precision(precision), nn.Linear(2, 2))
    check_storage("bfloat16", Precision(precision), nn.Linear(2, 2).bfloat16())
    check_storage("bfloat16", Precision("bf16"), nn.Linear(2, 2))
    check_storage(None, Precision(precision), nn.Linear(2, 2))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"frozen_dtype='int4' is not allowed: use one of \('bfloat16', 'float8'"):
        GrowthConfig(frozen_dtype="int4")  # type: ignore[arg-type]


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name))
    with pytest.raises(ConfigError, match=r'frozen_dtype=\'nf4\' needs torchao: pip install "autoprog-diffusion\[low'):
        begin("nf4")
    begin("bfloat16")


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_a_budget_counts_what_is_held(dtype: Any) -> None:
    """And not the parameters that stand in the place of quantised weights."""
    model = DIT.build().train()
    config = GrowthConfig(
        num_stages=2, direction="window", stage_embedding=False, frozen_dtype=dtype, checkpointing="auto", memory_gb=1
    )
    growth = GrowthScheduler(model, config)
    optimizer = torch.optim.AdamW(growth.parameters())
    growth.prepare(model, num_training_steps=4, optimizer=optimizer)
    stored = {layer.weight for layer in growth._storage._layers if layer.stored}
    assert bool(stored) == (dtype is not None)
    small = sum(parameter.numel() for parameter in stored)
    outputs = sum(len(parameter) for parameter in stored)
    whole = sum(parameter.numel() for parameter in model.parameters()) - small
    with torch.autocast("cpu", torch.bfloat16):
        loss = DIT.loss(model, 0)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    growth.step()
    memory = growth.history[-1].memory
    assert memory is not None
    # An output's scale and zero point, see above.
    sizes = {"bfloat16": [2 * small], "int8": [small + size * outputs for size in (4 + 1, 4 + 8)]}
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert memory["weights"] - 4 * whole - buffers in sizes.get(dtype, [0])


def test_a_search_looks_at_exact_weights() -> None:
    found = []
    for dtype in (None, "bfloat16"):
        model, growth, optimizer = begin(dtype, direction="unfreeze", search="zero_shot")
        for seed in range(8):
            train(model, optimizer, seed)
            growth.step()
        choices = [{**decision, "seconds": None} for decision in growth.decisions]
        assert choices
        found.append((choices, model.state_dict()))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name
