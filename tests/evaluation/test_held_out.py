"""`HeldOut`: the same draws each time, no trace, the weights that would be saved, and a noise that can be checked."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.evaluation.draws import Draw, seeded, stratified_times
from autoprog_diffusion.evaluation.errors import EvaluationError
from autoprog_diffusion.evaluation.held_out import HeldOut

from ..settings import BY_ID
from .losses import FAMILY, batches, joined, loss, loss_of, mean_loss


WINDOWS = {"direction": "window", "num_stages": 6, "sweeps": 2}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return FAMILY.build().train()


@pytest.fixture
def held_out() -> HeldOut:
    return HeldOut(loss, batches(), draws=3)


def test_it_is_the_loop_that_anybody_would_write(model: nn.Module, held_out: HeldOut) -> None:
    found = held_out.evaluate(model)
    samples = joined(batches())
    times = stratified_times(6, 3, 0)
    losses = torch.zeros(3, 6, dtype=torch.float64)
    model.eval()
    for draw in range(3):
        for image in range(6):
            batch = {name: value[image : image + 1] for name, value in samples.items()}
            batch["timestep"] = torch.tensor([int(times[draw, image] * 1000)])
            with torch.no_grad():
                output = model(**batch, return_dict=False)[0]
            noise = torch.randn(output.shape[1:], generator=seeded(0, image, draw, 0))
            losses[draw, image] = nn.functional.mse_loss(output[0], noise).double()
    model.train()
    assert torch.allclose(found.losses, losses, rtol=1e-5)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    for index, value in enumerate(found.by_range):
        inside = (times >= index / 4) & (times < (index + 1) / 4)
        assert value == pytest.approx(float(losses[inside].mean()), rel=1e-6)
    means = losses.mean(1)
    assert found.noise == pytest.approx(float(((means - means.mean()).square().sum() / (3 * 2)).sqrt()), rel=1e-5)
    assert found.bounds == [[0.0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]


def test_two_evaluations_are_equal_and_leave_no_trace(model: nn.Module, held_out: HeldOut) -> None:
    parts = list(model.children())
    parts[0].eval()
    parts[1].requires_grad_(False)
    gradient = torch.ones(1)
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    first.grad = torch.ones_like(first)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    drawn = (torch.rand(3), np.random.rand(3), random.random())

    def again() -> tuple[Tensor, Any, float]:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        evaluations = [held_out.evaluate(model), held_out.evaluate(model)]
        assert torch.equal(evaluations[0].losses, evaluations[1].losses)
        return torch.rand(3), np.random.rand(3), random.random()

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    drawn = (torch.rand(3), np.random.rand(3), random.random())
    after = again()
    assert torch.equal(drawn[0], after[0])
    assert (drawn[1] == after[1]).all()
    assert drawn[2] == after[2]
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(first.grad, gradient.expand_as(first))
    assert torch.is_grad_enabled()
    model.requires_grad_(True).train()
    first.grad = None


def test_an_error_in_the_loss_leaves_no_trace_either(model: nn.Module) -> None:
    def broken(model: nn.Module, batch: Any, draw: Draw) -> Tensor:
        torch.rand(1)
        raise RuntimeError("mine")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="mine"):
        HeldOut(broken, batches()).evaluate(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_a_mean_gives_what_single_losses_give(model: nn.Module, held_out: HeldOut) -> None:
    single = held_out.evaluate(model)
    mean = HeldOut(mean_loss, batches(), draws=3).evaluate(model)
    assert torch.allclose(single.losses, mean.losses, rtol=1e-5)


def test_the_size_of_a_batch_does_not_matter(model: nn.Module, held_out: HeldOut) -> None:
    large = HeldOut(loss, [joined(batches())], draws=3).evaluate(model)
    assert torch.allclose(held_out.evaluate(model).losses, large.losses, rtol=1e-5)


def test_what_the_loss_draws_from_the_global_generators_is_the_same_each_time(model: nn.Module) -> None:
    def draws(model: nn.Module, batch: Any, draw: Draw) -> Tensor:
        return torch.rand(2) + random.random() + np.random.rand()

    held_out = HeldOut(draws, batches())
    first = held_out.evaluate(model).losses
    torch.rand(1)
    assert torch.equal(first, held_out.evaluate(model).losses)
    assert len(first.unique()) == first.numel()


def test_a_shuffled_loader_is_taken_once_without_advancing_anything(model: nn.Module) -> None:
    data = [{name: value[0] for name, value in FAMILY.inputs(seed, 1).items()} for seed in range(6)]
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    state = torch.get_rng_state()
    held_out = HeldOut(loss, loader)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(HeldOut(loss, loader).evaluate(model).losses, held_out.evaluate(model).losses)


def test_a_compiled_model_is_evaluated_as_the_bare_one(model: nn.Module, held_out: HeldOut) -> None:
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(held_out.evaluate(compiled).losses, held_out.evaluate(model).losses)


@pytest.mark.parametrize(("id", "settings"), [("unet2d", {}), ("dit", WINDOWS), ("flux", {})])
def test_what_would_be_saved_is_evaluated_and_training_goes_on_as_without(id: str, settings: dict[str, Any]) -> None:
    family = BY_ID[id]
    evaluations, weights = [], []
    for evaluates in (True, False):
        model = family.build().train()
        average = EMAModel(model.parameters(), decay=0.7)
        growth = GrowthScheduler(model, GrowthConfig(**{"num_stages": 3, **settings, "ema_decay": 0.7}))
        optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
        growth.prepare(model, num_training_steps=6, optimizer=optimizer)
        held_out = HeldOut(loss_of(family), batches(family, 1), average=average, growth=growth, draws=2)
        for step in range(6):
            family.loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.step(growth.ema_parameters())
            growth.step()
            if evaluates:
                evaluations.append(held_out.evaluate(model))
        average.copy_to(model.parameters())
        growth.fold(model)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    plain = HeldOut(loss_of(family), batches(family, 1), draws=2).evaluate(model)
    # The frozen front makes some inputs contiguous, which rounds differently.
    assert torch.allclose(plain.losses, evaluations[-1].losses, rtol=1e-5)
    assert not torch.equal(plain.losses, evaluations[0].losses)


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_frozen_weights_that_are_held_small_are_exact_in_an_average(dtype: Any) -> None:
    family = BY_ID["dit"]
    model = family.build().train()
    average = EMAModel(model.parameters(), decay=0.7)
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, frozen_dtype=dtype))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=4, optimizer=optimizer)
    held_out = HeldOut(loss_of(family), batches(family, 1), average=average, growth=growth, draws=2)
    for step in range(4):
        family.loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(growth.ema_parameters())
        growth.step()
        last = held_out.evaluate(model)
        assert torch.equal(last.losses, held_out.evaluate(model).losses)
    average.copy_to(model.parameters())
    growth.fold(model)
    plain = HeldOut(loss_of(family), batches(family, 1), draws=2).evaluate(model)
    assert torch.allclose(plain.losses, last.losses, rtol=1e-5)


def test_times_cover_every_range_in_every_draw_and_for_every_image() -> None:
    times = stratified_times(10, 5, 3)
    assert torch.equal(times, stratified_times(10, 5, 3))
    assert ((0 < times) & (times < 1)).all()
    for draw in times:
        assert (draw * 10).long().sort().values.tolist() == list(range(10))
    for image in times.T:
        assert (image * 5).long().unique().numel() >= 4
        assert image.sort().values.diff().min() > 0.1


BAD_INPUT = [
    ({"batches": []}, "there is no held-out batch: give at least one image"),
    ({"batches": [{"text": ["a"]}]}, "holds no tensor with a first axis"),
    ({"draws": 0}, "draws=0 is not allowed: use a whole number of at least 1"),
    ({"ranges": 0}, "ranges=0 is not allowed"),
]


def test_bad_input_is_refused_by_name() -> None:
    for arguments, message in BAD_INPUT:
        with pytest.raises(EvaluationError, match=message):
            HeldOut(loss, **{"batches": batches(), **arguments})


def test_a_loss_of_another_shape_and_a_foreign_average_are_refused(model: nn.Module) -> None:
    def wrong(model: nn.Module, batch: Any, draw: Draw) -> Tensor:
        return torch.zeros(2, 3)

    with pytest.raises(EvaluationError, match=r"a batch of 2 has the shape \(2, 3\): return one number a sample"):
        HeldOut(wrong, batches()).evaluate(model)
    average = EMAModel(list(model.parameters())[:3])
    with pytest.raises(EvaluationError, match="the average holds 3 tensors, the model"):
        HeldOut(loss, batches(), average=average).evaluate(model)
