"""AdamW with low-bit state: torchao's own numbers, exact in checkpoints, and roundings that depend on nothing else."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion.training.low_bit import CLASSES, low_bit_adamw


# Tensors of torchao are compared by their parts; float8 cannot be compared, its bytes can.
def parts(value: Any) -> list[Tensor]:
    if hasattr(value, "tensor_attrs"):
        return [getattr(value, name).view(torch.uint8) for name in value.tensor_attrs]
    return [value]


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 64), (32, 128), (7,))
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.Parameter(value.to(dtype if value.dim() > 1 else torch.float32)) for value in values]


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.step()


names = pytest.mark.parametrize("name", CLASSES)


@names
@pytest.mark.smoke
def test_without_rounding_it_is_torchao_s_own(name: str) -> None:
    from torchao import optim

    ours = weights()
    theirs = weights()
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    first = low_bit_adamw(name, ours, **settings)
    second = getattr(optim, CLASSES[name])(theirs, **settings)
    for number in range(3):
        step(first, ours, number)
        with torch.compiler.set_stance("force_eager"):
            step(second, theirs, number)
    assert all(map(torch.equal, ours, theirs))


@names
def test_state_is_small_and_comes_back_from_a_checkpoint_exactly(name: str) -> None:
    trained = weights(torch.bfloat16)
    optimizer = low_bit_adamw(name, trained, seed=3, lr=1e-2)
    step(optimizer, trained, 0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in trained]
    again = low_bit_adamw(name, copies, seed=3, lr=1e-2)
    again.load_state_dict(torch.load(file, weights_only=True))
    for parameter, copy in zip(trained, copies, strict=True):
        before = optimizer.state[parameter]
        after = again.state[copy]
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert type(value) is type(after[key])
            assert value.dtype == after[key].dtype
            assert all(map(torch.equal, parts(value), parts(after[key])))
    codes = optimizer.state[trained[0]]["exp_avg"].codes
    assert codes.numel() * codes.element_size() == {"adamw4bit": 2048}.get(name, 4096)
    for number in (1, 2):
        step(optimizer, trained, number)
        step(again, copies, number)
    assert all(map(torch.equal, trained, copies))


@names
def test_roundings_leave_the_global_generator_alone_and_do_not_depend_on_it(name: str) -> None:
    results = []
    for seed in (1, 2):
        trained = weights(torch.bfloat16)
        optimizer = low_bit_adamw(name, trained, seed=0, lr=1e-2)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        step(optimizer, trained, 0)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(trained)
    assert all(map(torch.equal, *results))
    other = weights(torch.bfloat16)
    step(low_bit_adamw(name, other, seed=1, lr=1e-2), other, 0)
    assert not torch.equal(other[0], results[0][0])
    assert torch.equal(other[2], results[0][2])  # float32: nothing is rounded


def test_the_order_in_which_parameters_step_does_not_matter() -> None:
    together = weights(torch.bfloat16)
    optimizer = low_bit_adamw("adamw8bit", together, seed=0, lr=1e-2)
    apart = weights(torch.bfloat16)
    single = low_bit_adamw("adamw8bit", apart, seed=0, lr=1e-2)
    for number in range(2):
        step(optimizer, together, number)
        gradients = [parameter.grad for parameter in together]
        for index in (2, 0, 1):
            for parameter in apart:
                parameter.grad = None
            apart[index].grad = gradients[index]
            single.step()
    assert all(map(torch.equal, together, apart))


def test_steps_that_bfloat16_cannot_tell_are_right_on_average() -> None:
    """Steps of 1e-4 from 1: bfloat16 has no number between 1 and 1 - 1/256."""
    ends = {}
    for seed in (None, 0):
        weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        optimizer = low_bit_adamw("adamw8bit", [weight], seed=seed, lr=1e-4, weight_decay=0.0)
        for _ in range(50):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ends[seed] = float(weight.detach().float().mean())
    assert ends[None] == 1.0
    assert ends[0] == pytest.approx(1 - 50 * 1e-4, abs=2e-4)


def test_a_step_of_a_rate_that_somebody_scaled_is_as_large() -> None:
    """The re-warm-up of learning rates puts another rate into a group around a step."""
    slow = weights(torch.bfloat16)
    optimizer = low_bit_adamw("adamw8bit", slow, seed=0, lr=1e-2)
    before = torch.is_tensor(optimizer.param_groups[0]["lr"])
    optimizer.register_step_pre_hook(lambda *_: optimizer.param_groups[0].update(lr=torch.tensor(5e-3)))
    step(optimizer, slow, 0)
    half = weights(torch.bfloat16)
    step(low_bit_adamw("adamw8bit", half, seed=0, lr=5e-3), half, 0)
    assert before
    assert all(map(torch.equal, slow, half))
    with pytest.raises(TypeError, match="no closure"):
        optimizer.step(lambda: 0.0)
