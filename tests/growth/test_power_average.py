"""`PowerAverage` beside runs that freeze, open and sweep, against averages by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import ConfigError, GrowthConfig, GrowthScheduler, StateError
from autoprog_diffusion.growth.power_average import DEFAULT_WIDTH, PowerAverage
from autoprog_diffusion.growth.power_function import exponent_of

from .looping import SMALL, begin, begin_adapters, train
from .preparing import DIT


STEPS = 8
DIRECTIONS = ("freeze", "unfreeze", "window")
WIDTHS = (DEFAULT_WIDTH, 0.25)
directions = pytest.mark.parametrize("direction", DIRECTIONS)


def by_hand(history: list[Tensor], width: float) -> Tensor:
    """Weights of all steps, the first one first -> their average, each step counted by its integral of t^gamma."""
    power = exponent_of(width) + 1
    total = torch.zeros_like(history[0], dtype=torch.float64)
    for step, value in enumerate(history, start=1):
        total += (step**power - (step - 1) ** power) * value.double()
    return (total / len(history) ** power).float()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def rows_of(growth: GrowthScheduler) -> Tensor:
    """The row of the stage embedding that is in use."""
    embedding: Any = growth.stage_embedding
    return embedding.table[growth.stage].detach().clone()


def dit(direction: str, **settings: Any) -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
    model = DIT.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, direction=direction, **settings))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    return model, growth, optimizer


@directions
def test_averages_of_all_widths_are_those_by_hand(direction: str) -> None:
    model, growth, optimizer = begin(STEPS, direction=direction, num_stages=4)
    average = PowerAverage(model, growth=growth, widths=WIDTHS)
    history = []
    for step in range(STEPS):
        train(model, optimizer, step)
        average.step()
        history.append(weights_of(model))
        growth.step()
    for width in WIDTHS:
        average.use(width)
        assert average.averages.keys() == history[0].keys()
        for name, found in average.averages.items():
            torch.testing.assert_close(found, by_hand([weights[name] for weights in history], width))


@directions
def test_the_average_of_model_and_stage_embedding_is_that_of_the_folded_models(direction: str) -> None:
    model, growth, optimizer = dit(direction, stage_embedding_init="normal")
    average = PowerAverage(model, growth=growth)
    biases: dict[str, list[Tensor]] = {}
    for step in range(STEPS):
        train(model, optimizer, step, DIT)
        average.step()
        with growth.folded(model):
            for name, value in weights_of(model).items():
                biases.setdefault(name, []).append(value)
        growth.step()
    average.copy_to(model.parameters())
    growth.fold(model)
    for name, found in model.state_dict().items():
        torch.testing.assert_close(found, by_hand(biases[name], DEFAULT_WIDTH), rtol=1e-5, atol=1e-6)


def test_the_null_row_is_averaged_as_well() -> None:
    model, growth, optimizer = dit("freeze", stage_dropout=0.5)
    average = PowerAverage(model, growth=growth)
    nulls = []
    for step in range(STEPS):
        train(model, optimizer, step, DIT)
        average.step()
        nulls.append(growth.stage_embedding.table[2].detach().clone())  # type: ignore[union-attr]
        growth.step()
    average.copy_to()
    found = growth.stage_embedding.table[2].detach()  # type: ignore[union-attr]
    assert found.any()
    torch.testing.assert_close(found, by_hand(nulls, DEFAULT_WIDTH))


@pytest.mark.parametrize("direction", ["freeze", "window"])
def test_what_closes_is_frozen_at_its_average_if_that_is_asked_for(direction: str) -> None:
    model, growth, optimizer = begin(STEPS, direction=direction, num_stages=4)
    average = PowerAverage(model, growth=growth, freeze_at_average=True)
    history: list[dict[str, Tensor]] = []
    closed = 0
    for step in range(STEPS):
        train(model, optimizer, step)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        history.append(weights_of(model))
        average.step()
        growth.step()
        now = weights_of(model)
        for name, parameter in model.named_parameters():
            closes = name in trained and not parameter.requires_grad
            closed += closes
            wanted = by_hand([weights[name] for weights in history], DEFAULT_WIDTH) if closes else history[-1][name]
            torch.testing.assert_close(now[name], wanted, rtol=1e-5 * closes, atol=1e-6 * closes)
    assert closed > 0
    growth.fold(model)


@pytest.mark.parametrize(
    ("direction", "freezes"), [("freeze", False), ("freeze", True), ("unfreeze", False), ("window", True)]
)
def test_frozen_weights_that_are_held_small_count_exactly(direction: str, freezes: bool) -> None:
    settings = {"direction": direction, "num_stages": 4, "frozen_dtype": "int8"}
    model, growth, optimizer = begin(STEPS, **settings)
    average = PowerAverage(model, growth=growth, freeze_at_average=freezes, device="cpu")
    history = []
    for step in range(STEPS):
        train(model, optimizer, step)
        history.append(weights_of(model))
        average.step()
        held = weights_of(model)
        growth.step()
        assert all(torch.equal(held[name], value) for name, value in model.state_dict().items())
        with average.in_place():
            inside = dict(model.named_parameters())
            assert all(torch.equal(inside[name], value) for name, value in average.averages.items())
        assert all(torch.equal(held[name], value) for name, value in model.state_dict().items())
    for name, found in average.averages.items():
        torch.testing.assert_close(found, by_hand([weights[name] for weights in history], DEFAULT_WIDTH))
    average.copy_to()
    growth.fold(model)
    assert all(torch.equal(value, average.averages[name]) for name, value in model.named_parameters())


def test_a_loop_without_growth_needs_the_model_alone() -> None:
    model = SMALL.build()
    model.get_submodule("pos_embed").requires_grad_(False)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    average = PowerAverage(model, num_training_steps=STEPS)
    history = []
    for step in range(STEPS):
        train(model, optimizer, step)
        average.step()
        history.append(weights_of(model))
    raw = history[-1]
    average.store(model.parameters())
    average.copy_to(model.parameters())
    for name, value in model.state_dict().items():
        wanted = [weights[name] for weights in history]
        torch.testing.assert_close(value, by_hand(wanted, DEFAULT_WIDTH) if "pos" not in name else raw[name])
    average.restore(model.parameters())
    assert all(torch.equal(raw[name], value) for name, value in model.state_dict().items())
    assert not [name for name in average.averages if name.startswith("pos_embed")]


def test_adapters_alone_are_averaged() -> None:
    model, growth, _ = begin_adapters(direction="freeze")
    average = PowerAverage(model, growth=growth, widths=[0.28])
    assert all("lora" in name for name in average.averages)


def test_weights_in_half_precision_have_an_average_in_float32() -> None:
    model = nn.Linear(4, 4, bias=False).bfloat16()
    average = PowerAverage(model)
    history = []
    for step in range(1, 30):
        nn.init.constant_(model.weight, 1 + step / 128)
        history.append(model.weight.detach().clone())
        average.step()
    assert average.averages["weight"].dtype == torch.float32
    torch.testing.assert_close(average.averages["weight"], by_hand(history, DEFAULT_WIDTH))


def test_the_best_width_is_that_of_the_lowest_loss() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = PowerAverage(model, widths=[0.05, 0.1, 0.25])
    for step in range(50):
        nn.init.constant_(model.weight, float(step))
        average.step()
    losses = average.choose(lambda: abs(average.averages["weight"].item() - 43))
    assert list(losses) == [0.05, 0.1, 0.25]
    assert average.width == 0.1
    assert losses[0.1] == min(losses.values())


def test_other_widths_come_from_snapshots(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = nn.Linear(8, 8)
    average = PowerAverage(model, widths=[0.05, 0.1])
    paths = []
    history = []
    for step in range(1, 201):
        with torch.no_grad():
            model.weight += 0.1 * torch.randn(8, 8)
        history.append(model.weight.detach().clone())
        average.step()
        if step % 20 == 0:
            paths.append(tmp_path / f"{step}.pt")
            average.save(paths[-1])
    for width in (0.07, 0.15):
        average.reconstruct(width, paths)
        wanted = by_hand(history, width)
        assert average.width == width
        assert (average.averages["weight"] - wanted).norm() < 0.03 * (history[-1] - wanted).norm()
        torch.testing.assert_close(average.averages["bias"], model.bias.detach())
    with pytest.raises(ConfigError, match="cannot be put together from 2 snapshots"):
        average.reconstruct(0.2)
    assert average.widths == (0.05, 0.1, 0.07, 0.15)
    assert average.state_dict()["widths"] == [0.05, 0.1]
    torch.save({"optimization_step": 3}, tmp_path / "ema.pt")
    with pytest.raises(StateError, match="no state of a PowerAverage, it lacks"):
        average.reconstruct(0.2, [tmp_path / "ema.pt"])


def test_a_state_goes_on_bit_for_bit_and_fits_its_run_alone(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    average = PowerAverage(model, widths=WIDTHS)
    for _ in range(5):
        nn.init.normal_(model.weight)
        average.step()
    resumed = PowerAverage(model, widths=WIDTHS)
    resumed.load_state_dict(average.state_dict())
    for _ in range(5):
        nn.init.normal_(model.weight)
        average.step()
        resumed.step()
    for width in WIDTHS:
        average.use(width)
        resumed.use(width)
        assert all(torch.equal(average.averages[name], value) for name, value in resumed.averages.items())
    with pytest.raises(StateError, match=r"averages of the widths \[0\.163.*, 0\.25\], this run tracks \[0\.1\]"):
        PowerAverage(model, widths=[0.1]).load_state_dict(average.state_dict())
    with pytest.raises(StateError, match=r"differ in 2 tensors, for example bias: \(\(3,\), torch\.float32\) and"):
        PowerAverage(nn.Linear(4, 3), widths=WIDTHS).load_state_dict(average.state_dict())
    with pytest.raises(StateError, match=r"version 0 of averages; this library reads 1"):
        average.load_state_dict({**average.state_dict(), "version": 0})
