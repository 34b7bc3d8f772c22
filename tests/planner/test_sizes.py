"""Bytes from shapes are those of real tensors: of optimizers' state, and of quantised weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprog_diffusion.growth.memory import tensor_bytes
from autoprog_diffusion.growth.storage.formats import quantise
from autoprog_diffusion.planner.sizes import ParameterSize
from autoprog_diffusion.search.recorded_calls import tensors_in
from autoprog_diffusion.training.optimizers import OPTIMIZERS, Settings


SHAPES = ((64, 128), (64, 100), (16, 32, 3, 3), (7,), (4096,))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adamw4bit", "adamw_fp8", "adafactor"])
def test_state_takes_what_its_tensors_take(optimizer: str) -> None:
    for shape in SHAPES:
        weight = nn.Parameter(torch.zeros(shape))
        made = OPTIMIZERS[optimizer]([weight], Settings(lr=1e-3))
        weight.grad = torch.ones_like(weight)
        made.step()
        state = [value for name, value in made.state[weight].items() if name != "step"]
        size = ParameterSize(shape, layer=True, stored=())
        assert size.state_bytes(optimizer) == sum(tensor_bytes(tensor) for tensor in tensors_in(state))


@pytest.mark.parametrize("dtype", ["float8", "int8", "nf4"])
def test_a_frozen_weight_takes_what_its_parts_take(dtype: str) -> None:
    for shape in ((64, 128), (192, 64), (64, 32, 3, 3)):
        size = ParameterSize(shape, layer=True, stored=(dtype,))
        assert size.frozen_bytes(dtype) == tensor_bytes(quantise(torch.randn(shape), dtype))
        assert size.frozen_bytes(None) == tensor_bytes(torch.zeros(shape))
        assert size.frozen_bytes("bfloat16") == size.numel * 4  # cannot be held in it
