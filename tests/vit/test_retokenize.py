"""Re-tokenization: the dilation rule, weights untouched, and the vanilla model back bit for bit."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification

from autoprog_diffusion.vit.asvit import AsViT, Genotype
from autoprog_diffusion.vit.retokenize import (
    RetokenError,
    Retokenizer,
    dilation_for,
    find_projection,
    interpolate_positions,
    padding_for,
)


SIZES: dict[str, Any] = {
    "image_size": 32, "patch_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "num_labels": 5, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


class Windowless(nn.Module):
    """The smallest hierarchical stem: an overlapping projection without position embeddings, as As-ViT's."""

    def __init__(self, kernel: int, stride: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 6, kernel, stride)
        self.padding = padding_for(stride, kernel)

    def forward(self, images: Tensor) -> Tensor:
        return self.patch_embed.proj(images)


def make_vit(kind: str) -> nn.Module:
    if kind == "deit":
        return DeiTForImageClassification(DeiTConfig(**SIZES))
    return ViTForImageClassification(ViTConfig(**SIZES))


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return model(pixel_values=images).logits


def literal_convolution(images: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """One output number at a time: weight (k, l) looks at pixel start + k * dilation; outside is zero."""
    channels, _, kernel, _ = weight.shape
    dilation = max(1, math.floor((stride - 1) / (kernel - 1)))
    extent = dilation * (kernel - 1) + 1
    offset = math.ceil((stride - extent) / 2)  # of the kernel's first pixel from its token's first pixel
    count, _, height, width = images.shape
    out = torch.zeros(count, channels, height // stride, width // stride, dtype=images.dtype)
    for row in range(height // stride):
        for column in range(width // stride):
            total = bias.expand(count, channels).clone()
            for k in range(kernel):
                for m in range(kernel):
                    y, x = row * stride + offset + k * dilation, column * stride + offset + m * dilation
                    if 0 <= y < height and 0 <= x < width:
                        total = total + images[:, :, y, x] @ weight[:, :, k, m].T
            out[:, :, row, column] = total
    return out


def test_the_papers_schedule() -> None:
    assert [(stride, dilation_for(stride, 4)) for stride in (16, 8, 4)] == [(16, 5), (8, 2), (4, 1)]
    assert dilation_for(32, 16) == 2
    assert dilation_for(4, 8) == 1  # wider than its stride
    assert dilation_for(8, 1) == 1


def test_token_counts_come_out_exactly() -> None:
    for kernel in range(1, 9):
        for stride in (4, 8, 12, 16, 32):
            dilation, (before, after) = dilation_for(stride, kernel), padding_for(stride, kernel)
            extent = dilation * (kernel - 1) + 1
            assert extent <= max(stride, kernel)
            for tokens in (1, 2, 7):
                side = tokens * stride + before + after
                assert (side - extent) // stride + 1 == tokens
                assert (side - extent) % stride == 0  # no pixel of a token is left over on one side only
            assert after - before in (0, 1)


def test_against_one_number_at_a_time() -> None:
    for kernel, stride in ((4, 16), (4, 8), (8, 16), (7, 8), (5, 12), (8, 8)):
        model, images = Windowless(kernel).double(), torch.randn(2, 3, 48, 96, dtype=torch.float64)
        Retokenizer(model).enter(stride)
        weight, bias = model.patch_embed.proj.weight, model.patch_embed.proj.bias
        expected = literal_convolution(images, weight, bias, stride)
        torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_as_vit_pads_by_the_same_rule(stride: int) -> None:
    model, images = AsViT(Genotype.parse("7,2,2|2,1,2|2,1,2|2,1,2|16,16"), 3, 64).eval(), torch.randn(2, 3, 64, 64)
    before, tokens = model(images), Retokenizer(model)
    tokens.enter(stride)
    seen: list[Tensor] = []
    model.embed.proj.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert model(images).shape == before.shape
    proj = model.embed.proj
    expected = literal_convolution(images, proj.weight, proj.bias, stride)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RetokenError, match="re-tokenized already"):
        Retokenizer(model)
    tokens.restore()
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_the_vanilla_model_comes_back_bit_for_bit(kind: str) -> None:
    model, images = make_vit(kind).eval(), torch.randn(2, 3, 32, 32)
    vanilla, before = copy.deepcopy(model), outputs(model, images)
    tokens = Retokenizer(model)
    tokens.enter(16)
    coarse = outputs(model, images)
    assert coarse.shape == before.shape
    assert not torch.equal(coarse, before)
    tokens.enter(8)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in vanilla.state_dict().items()
    }
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), vanilla.state_dict().values()))
    tokens.enter(None)
    assert torch.equal(outputs(model, images), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert repr(model) == repr(vanilla)


def test_the_models_own_stride_is_restored_by_number_too() -> None:
    model = make_vit("vit")
    tokens = Retokenizer(model)
    tokens.enter(8)
    tokens.enter(4)
    projection = model.get_submodule(find_projection(model))
    assert (projection.stride, projection.dilation, projection.padding) == ((4, 4), (1, 1), (0, 0))
    assert not projection._forward_pre_hooks


def test_fewer_tokens_reach_the_blocks() -> None:
    model, seen = make_vit("vit"), []
    block = next(module for name, module in model.named_modules() if name.endswith("layer.0") or name.endswith("s.0"))
    block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    tokens = Retokenizer(model)
    for stride in (16, 8, None):
        tokens.enter(stride)
        outputs(model, torch.randn(1, 3, 32, 32))
    assert seen == [2 * 2 + 1, 4 * 4 + 1, 8 * 8 + 1]


def test_gradients_reach_the_real_positions_and_the_same_weights() -> None:
    model = make_vit("deit")
    named = dict(model.named_parameters())
    tokens = Retokenizer(model)
    tokens.enter(16)
    outputs(model, torch.randn(2, 3, 32, 32)).sum().backward()
    positions = next(value for name, value in named.items() if name.endswith("position_embeddings"))
    projection = next(value for name, value in named.items() if name.endswith("projection.weight"))
    assert dict(model.named_parameters()).keys() == named.keys()
    for parameter in (positions, projection):
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert positions.grad.shape == positions.shape


def test_position_gradient_is_that_of_an_explicit_interpolation() -> None:
    model, images = make_vit("vit").double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    vanilla = copy.deepcopy(model)
    Retokenizer(model).enter(16)
    outputs(model, images).sum().backward()
    # The literal twin: another model whose embeddings are 2 x 2 from the start.
    name = next(name for name, _ in model.named_parameters() if name.endswith("position_embeddings"))
    positions = dict(vanilla.named_parameters())[name]
    small = interpolate_positions(positions, (8, 8), (2, 2), 1)
    projection = vanilla.get_submodule(find_projection(vanilla))
    projection.stride, projection.dilation = (16, 16), (5, 5)
    kwargs = {"pixel_values": images}
    torch.func.functional_call(vanilla, {name: small}, kwargs=kwargs).logits.sum().backward()
    torch.testing.assert_close(dict(model.named_parameters())[name].grad, positions.grad, rtol=1e-10, atol=1e-12)


def test_positions_come_back_where_the_forward_pass_fails() -> None:
    model = make_vit("vit")
    positions = next(p for name, p in model.named_parameters() if name.endswith("position_embeddings"))
    Retokenizer(model).enter(16)
    model.vit.embeddings.dropout.register_forward_pre_hook(lambda module, inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outputs(model, torch.randn(1, 3, 32, 32))
    assert model.vit.embeddings.position_embeddings is positions


def test_a_copy_made_at_a_large_stride_is_a_model_of_its_own() -> None:
    """What an EMA copy taken in the middle of a stage is."""
    model, images = make_vit("vit").eval(), torch.randn(1, 3, 32, 32)
    tokens = Retokenizer(model)
    tokens.enter(16)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("position_embeddings")).zero_()
    assert not torch.equal(outputs(twin, images), outputs(model, images))
    for coarse in (model, twin):
        with pytest.raises(RetokenError, match="re-tokenized already"):  # else 16 would pass for the model's own
            Retokenizer(coarse)


def test_a_stride_the_model_cannot_have_is_refused() -> None:
    for stride in (2, 6, 0, -4, True, "8"):
        with pytest.raises(RetokenError, match=r"not a multiple of the model's own, 4: use one of \[4, 8, 16, 32\]"):
            Retokenizer(make_vit("vit")).enter(stride)


def test_an_image_the_stride_does_not_divide_is_refused() -> None:
    model = Windowless(4)
    Retokenizer(model).enter(16)
    with pytest.raises(RetokenError, match=r"\(40, 48\) pixels.*16 pixels apart"):
        model(torch.randn(1, 3, 40, 48))


def test_a_model_without_a_patch_projection_is_refused() -> None:
    with pytest.raises(RetokenError, match=r"0 patch projections.*\['0', '1'\]"):
        Retokenizer(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3)))
    with pytest.raises(RetokenError, match="has no module 'stem'"):
        Retokenizer(nn.Sequential(), "stem")
    with pytest.raises(RetokenError, match="is a Linear, not a Conv2d"):
        Retokenizer(nn.Sequential(nn.Linear(2, 2)), "0")
    with pytest.raises(RetokenError, match="kernel .4, 2."):
        Retokenizer(nn.Sequential(nn.Conv2d(3, 4, (4, 2), 4)), "0")


def test_positions_of_another_grid_are_refused() -> None:
    model = Windowless(4)
    model.patch_embed.grid_size = (8, 8)
    model.pos_embed = nn.Parameter(torch.zeros(1, 4, 4, 6))  # one embedding for a pooled map, as VOLO's
    with pytest.raises(RetokenError, match=r"\(1, 4, 4, 6\) do not match"):
        Retokenizer(model)


@pytest.mark.parametrize(("name", "options"), [("deit_tiny_patch16_224", {}), ("deit3_small_patch16_224", {}),
                                               ("vit_tiny_patch16_224", {"dynamic_img_size": True})])  # fmt: skip
def test_timm(name: str, options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 64, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 3}
    model = timm.create_model(name, **sizes, **options).eval()
    images, tokens = torch.randn(2, 3, 64, 64), Retokenizer(model)
    before = model(images)
    tokens.enter(32)
    assert model.forward_features(images).shape[1] == 4 + 1
    model(images).sum().backward()
    assert model.pos_embed.grad.abs().sum() > 0
    tokens.restore()
    assert torch.equal(model(images), before)


def test_interpolation_keeps_the_prefix_and_a_constant() -> None:
    positions = torch.cat([torch.full((1, 2, 3), 7.0), torch.full((1, 16, 3), 2.0)], dim=1)
    moved = interpolate_positions(positions, (4, 4), (2, 3), 2)
    assert torch.equal(moved[:, :2], positions[:, :2])
    torch.testing.assert_close(moved[:, 2:], torch.full((1, 6, 3), 2.0))
    grid = torch.randn(1, 5, 4, 4)
    rows = grid.flatten(2).transpose(1, 2)
    expected = F.interpolate(grid, size=(2, 2), mode="bicubic", antialias=True, align_corners=False)
    assert torch.equal(interpolate_positions(rows, (4, 4), (2, 2), 0), expected.flatten(2).transpose(1, 2))
