"""One layer held small: exact values, outputs and gradients, bytes, loading and copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprog_diffusion.growth import OrderError
from autoprog_diffusion.growth.memory import tensor_bytes
from autoprog_diffusion.growth.storage.formats import dequantise, quantise
from autoprog_diffusion.growth.storage.layer import StoredLayer, can_be_stored


pytestmark = pytest.mark.smoke

FORMATS = ("bfloat16", "float8", "int8", "nf4")
QUANTISED = FORMATS[1:]
formats = pytest.mark.parametrize("dtype", FORMATS)
quantised = pytest.mark.parametrize("dtype", QUANTISED)
LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(32, 64),
    "linear without bias": lambda: nn.Linear(32, 64, bias=False),
    "convolution": lambda: nn.Conv2d(32, 64, 3, stride=2, padding=1),
    "grouped convolution": lambda: nn.Conv2d(32, 64, 3, padding=2, dilation=2, groups=4),
    "in one dimension": lambda: nn.Conv1d(32, 64, 3),
    "in three dimensions": lambda: nn.Conv3d(32, 64, (1, 3, 3), padding=(0, 1, 1)),
}


def frozen(name: str) -> Any:
    torch.manual_seed(0)
    return LAYERS[name]().requires_grad_(False)


def an_input(layer: Any) -> Tensor:
    shape = (2, 5, 32) if isinstance(layer, nn.Linear) else (2, 32, 6, 6, 6)[: layer.weight.dim()]
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def literal(layer: Any, weight: Tensor, x: Tensor) -> Tensor:
    """The layer with another weight, by torch's own functions and autograd."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, layer.bias)
    call = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[weight.dim()]
    return call(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


@quantised
def test_output_and_gradient_are_those_of_the_dequantised_weight(dtype: Any) -> None:
    for name in LAYERS:
        layer = frozen(name)
        weight = dequantise(quantise(layer.weight, dtype), layer.weight.shape, torch.float32)
        assert not torch.equal(weight, layer.weight)
        StoredLayer(layer, dtype).store()
        x = an_input(layer).requires_grad_()
        y = an_input(layer).requires_grad_()
        ours = layer(x)
        theirs = literal(layer, weight, y)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        ours.square().mean().backward()
        theirs.square().mean().backward()
        torch.testing.assert_close(x.grad, y.grad)


def test_float8_holds_a_layer_with_an_output_of_zeros() -> None:
    """As those that Diffusers begins with zeros: a scale of zero would give no number."""
    layer = frozen("linear")
    layer.weight.data[3] = 0.0
    StoredLayer(layer, "float8").store()
    assert torch.isfinite(layer(an_input(layer))).all()


@quantised
def test_the_backward_pass_keeps_neither_weight_nor_input(dtype: Any) -> None:
    for name in LAYERS:
        layer = frozen(name)
        StoredLayer(layer, dtype).store()
        kept: list[Tensor] = []

        def keep(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(an_input(layer).requires_grad_())
        assert kept == []


@formats
def test_a_restored_weight_is_the_very_same(dtype: Any) -> None:
    for name in LAYERS:
        layer = frozen(name)
        parameter = layer.weight
        before = parameter.detach().clone()
        x = an_input(layer)
        expected = layer(x)
        stored = StoredLayer(layer, dtype)
        whole = stored.bytes
        stored.store()
        stored.store()
        assert torch.equal(stored.exact(), before)
        assert stored.bytes < whole
        assert stored.whole_bytes == whole
        stored.restore()
        stored.restore()
        assert layer.weight is parameter
        assert torch.equal(parameter, before)
        assert torch.equal(layer(x), expected)
        assert "forward" not in vars(layer)


@pytest.mark.parametrize(("dtype", "an_output"), [("float8", (4,)), ("int8", (4 + 1, 4 + 8))])
def test_bytes_of_a_format(dtype: Any, an_output: tuple[int, ...]) -> None:
    """A scale in float32 for each of 64 outputs, and with int8 a zero point: of a byte, in older versions of eight."""
    packed = quantise(torch.randn(64, 32), dtype)
    assert tensor_bytes(packed) - 64 * 32 in [64 * size for size in an_output]


def test_bytes_of_nf4() -> None:
    packed = quantise(torch.randn(256, 256), "nf4")
    blocks = 256 * 256 // 64
    tables = 4 * 16 + 4  # the levels, and the mean of the scales
    assert tensor_bytes(packed) == 256 * 256 // 2 + blocks + 4 * blocks // 256 + tables


def test_what_is_bfloat16_already_needs_no_copy_on_the_cpu() -> None:
    layer = frozen("linear")
    layer.weight.data = layer.weight.data.bfloat16().float()
    before = layer.weight.detach().clone()
    stored = StoredLayer(layer, "bfloat16")
    stored.store()
    assert stored._exact is None
    assert torch.equal(stored.exact(), before)
    stored.restore()
    assert torch.equal(layer.weight, before)
    assert layer.weight.dtype == torch.float32


@formats
def test_a_state_dictionary_holds_and_takes_exact_values(dtype: Any) -> None:
    layer = frozen("linear")
    model = nn.ModuleDict({"inner": nn.Sequential(layer)})
    before = layer.weight.detach().clone()
    stored = StoredLayer(layer, dtype)
    stored.store()
    assert torch.equal(model.state_dict()["inner.0.weight"], before)
    assert torch.equal(layer.state_dict()["weight"], before)
    other = torch.randn(64, 32)
    model.load_state_dict({"inner.0.weight": other, "inner.0.bias": layer.bias})
    assert stored.stored
    assert torch.equal(layer.state_dict()["weight"], other)
    fresh = StoredLayer(nn.Linear(32, 64).requires_grad_(False), dtype)
    fresh.weight.data = other.clone()
    fresh.module.bias.data = layer.bias.data
    fresh.store()
    x = an_input(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), fresh.module(x))


@formats
def test_a_copy_of_the_model_is_on_its_own(dtype: Any) -> None:
    layer = frozen("linear")
    stored = StoredLayer(layer, dtype)
    stored.store()
    twin = copy.deepcopy(layer)
    assert twin.forward.__self__.module is twin
    twin.load_state_dict({"weight": torch.zeros(64, 32), "bias": torch.zeros(64)})
    assert torch.equal(twin.state_dict()["weight"], torch.zeros(64, 32))
    assert stored.exact().any()
    with torch.autocast("cpu", torch.bfloat16):
        assert not twin(an_input(layer)).any()


def test_in_bfloat16_another_type_gets_the_exact_weight_or_is_refused() -> None:
    layer = frozen("linear").eval()
    x = an_input(layer)
    expected = layer(x)
    StoredLayer(layer, "bfloat16").store()
    assert torch.equal(layer(x), expected)
    layer.train()
    with pytest.raises(OrderError, match="under bfloat16 autocast only, and the model trains in torch.float32"):
        layer(x)
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(OrderError, match="the model trains in torch.float16: use Accelerator"),
    ):
        layer(x)


def test_which_layers_can_be_stored() -> None:
    assert can_be_stored(nn.Linear(3, 5), "bfloat16")
    assert can_be_stored(nn.Linear(8, 16), "nf4")
    assert not can_be_stored(nn.Linear(3, 5), "nf4")  # not a whole group of 64
    assert not can_be_stored(nn.Linear(8, 8).bfloat16(), "bfloat16")  # it is
    assert can_be_stored(nn.Linear(8, 8).bfloat16(), "int8")
    assert not can_be_stored(nn.LayerNorm(8), "int8")
    assert not can_be_stored(nn.Embedding(8, 8), "int8")
    assert not can_be_stored(nn.Conv2d(8, 8, 3, padding_mode="circular"), "int8")
    assert not can_be_stored(nn.ConvTranspose2d(8, 8, 3), "int8")
    moved = nn.Linear(8, 8)
    moved.forward = moved.forward  # as offloading does
    assert not can_be_stored(moved, "int8")
