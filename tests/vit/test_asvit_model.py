"""The As-ViT network: published sizes, exact geometry, windows that do not leak, strides that change at run time."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprog_diffusion.vit.asvit import AsViT, Genotype, GenotypeError, SearchSpace
from autoprog_diffusion.vit.asvit.genotype import EXAMPLE, ZOO
from autoprog_diffusion.vit.asvit.model import Merging, WindowAttention


def tiny(text: str = "8,2,3|4,1,2|4,1,4|4,1,6|16,8", size: int = 32, **kwargs: object) -> AsViT:
    return AsViT(Genotype.parse(text), 5, size, **kwargs)


PUBLISHED_SIZES = [("seed", 2.32, 0.49), ("small", 29.0, 5.3), ("base", 52.6, 8.9), ("large", 88.1, 22.6)]


def test_published_sizes() -> None:
    for name, millions, giga in PUBLISHED_SIZES:
        with torch.device("meta"):
            model, images = AsViT(Genotype.parse(ZOO[name]), 1000, 224), torch.empty(1, 3, 224, 224)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                assert model(images).shape == (1, 1000)
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
        assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.05)  # the paper counts multiply-adds


def test_any_network_of_the_space_trains() -> None:
    rng, space = Random(0), SearchSpace().at(32, width=8)
    for _ in range(6):
        model = AsViT(replace(space.sample(rng), width=8, depths=(1, 2, 1, 1)), 5, 32)
        model(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters() if p.dim() > 1)


def test_grids_and_features() -> None:
    model, images = tiny(size=64), torch.randn(2, 3, 64, 64)
    assert model.embed(images).shape == (2, 16, 16, 8)
    assert model.tokens(images).shape == (2, 2, 2, 64)
    torch.testing.assert_close(model.features(images), model.tokens(images).flatten(1, 2).mean(1))
    head = model.head(model.norm(model.tokens(images)).mean((1, 2)))
    torch.testing.assert_close(model(images), head)


def attention_of_one_window(layer: WindowAttention, tokens: Tensor) -> Tensor:
    """(n, C) -> (n, C), softmax(q k / sqrt(d)) v head by head."""
    width, heads = tokens.shape[1], layer.heads
    q, k, v = layer.qkv(tokens).split(width, dim=1)
    parts = []
    for head in torch.arange(width).split(width // heads):
        weights = (q[:, head] @ k[:, head].T / len(head) ** 0.5).softmax(1)
        parts.append(weights @ v[:, head])
    return layer.proj(torch.cat(parts, dim=1))


@pytest.mark.parametrize(("side", "splits", "windows"), [(8, 2, 2), (4, 4, 4), (6, 1, 1), (6, 4, 2), (3, 2, 1)])
def test_attention_is_that_of_each_window_written_out(side: int, splits: int, windows: int) -> None:
    """Also on coarse grids, which take the largest number of windows that divides both."""
    layer, x = WindowAttention(12, 3, splits), torch.randn(2, side, side, 12)
    nn.init.normal_(layer.qkv.weight)
    found, step = layer(x), side // windows
    for sample in range(2):
        for row in range(0, side, step):
            for column in range(0, side, step):
                cut = (sample, slice(row, row + step), slice(column, column + step))
                expected = attention_of_one_window(layer, x[cut].flatten(0, 1)).view(step, step, 12)
                torch.testing.assert_close(found[cut], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_merging_gathers_the_neighbourhood_of_every_second_token(kernel: int) -> None:
    for side in (1, 2, 5, 6):
        layer, x = Merging(kernel, 3, 7), torch.randn(1, side, side, 3)
        found = layer(x)
        half = (side + 1) // 2
        assert found.shape == (1, half, half, 7)
        before = (kernel - 2) // 2
        for row in range(half):
            for column in range(half):
                window = torch.zeros(3, kernel, kernel)
                for i in range(kernel):
                    for j in range(kernel):
                        y, z = 2 * row - before + i, 2 * column - before + j
                        if 0 <= y < side and 0 <= z < side:
                            window[:, i, j] = x[0, y, z]
                torch.testing.assert_close(found[0, row, column], layer.reduction(layer.norm(window.flatten())))


def test_any_stride_and_dilation_gives_a_whole_grid() -> None:
    for kernel in (4, 5, 6, 7, 8):
        for stride, dilation in ((4, 1), (8, 1), (8, 2), (16, 1), (16, 5), (32, 4)):
            model = tiny(f"{kernel},2,3|4,1,2|4,1,4|4,1,6|16,8", size=64)
            names = list(model.state_dict())
            model.embed.proj.stride, model.embed.proj.dilation = (stride, stride), (dilation, dilation)
            assert model.embed.kernel == kernel
            assert model.embed(torch.randn(1, 3, 64, 64)).shape == (1, 64 // stride, 64 // stride, 8)
            assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
            assert list(model.state_dict()) == names


def test_a_dilated_projection_samples_the_same_weights_further_apart() -> None:
    """Stride 16, dilation 5 and K = 4 cover one token exactly: no padding, taps 5 pixels apart."""
    model = tiny("4,2,3|4,1,2|4,1,4|4,1,6|16,8", size=64)
    model.embed.proj.stride, model.embed.proj.dilation = (16, 16), (5, 5)
    images = torch.randn(1, 3, 64, 64)
    token = (images[0, :, 16:32:5, 32:48:5] * model.embed.proj.weight).sum((1, 2, 3)) + model.embed.proj.bias
    torch.testing.assert_close(model.embed(images)[0, 1, 2], model.embed.norm(token), rtol=1e-4, atol=1e-5)


def test_a_stride_that_does_not_divide_the_image_is_an_error() -> None:
    model = tiny(size=64)
    model.embed.proj.stride = (12, 12)
    with pytest.raises(GenotypeError, match="stride 12 does not divide images of 64 x 64"):
        model(torch.randn(1, 3, 64, 64))
    with pytest.raises(GenotypeError, match="image size 48 is not a multiple of 32"):
        AsViT(Genotype.parse(EXAMPLE), 5, 48)


def test_samples_do_not_mix() -> None:
    model, images = tiny().eval(), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-6)


def test_stochastic_depth_drops_samples_while_training_only() -> None:
    model, images = tiny(drop_path=0.5), torch.randn(1, 3, 32, 32).expand(64, -1, -1, -1)
    rates = [block.drop_path.rate for blocks in model.stages for block in blocks]
    assert rates == pytest.approx([0, 1 / 6, 1 / 3, 0.5])
    outputs = model(images)
    assert len(outputs.detach().round(decimals=5).unique(dim=0)) > 2
    torch.testing.assert_close(model.eval()(images)[0], model(images)[5])


def test_reset_parameters_draws_everything_anew() -> None:
    model = tiny()
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.reset_parameters()
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, first[name])}
    constant = {name for name, tensor in first.items() if tensor.dim() == 1 and "embed.proj" not in name}
    assert same == constant  # biases and norms
