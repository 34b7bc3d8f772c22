"""Encoding with the channels of a pixel side by side gives the same latents, and leaves the network as it was."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import nn

from autoprog_diffusion.data.memory_format import in_channels_last


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, latent_channels=4)


def strides(module: nn.Module) -> list[tuple[int, ...]]:
    return [parameter.stride() for parameter in module.parameters()]


def test_encodes_the_same(vae: AutoencoderKL) -> None:
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.parameters
        with in_channels_last(vae) as memory_format:
            assert vae.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
            found = vae.encode(pixels.contiguous(memory_format=memory_format)).latent_dist.parameters
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_leaves_the_network_as_it_was(vae: AutoencoderKL) -> None:
    before = strides(vae)
    places = [parameter.data_ptr() for parameter in vae.parameters()]
    with in_channels_last(vae):
        assert strides(vae) != before
    assert strides(vae) == before
    with pytest.raises(RuntimeError), in_channels_last(vae):
        raise RuntimeError
    assert strides(vae) == before
    assert [parameter.data_ptr() for parameter in vae.parameters()] == places


def test_convolutions_over_frames_stay() -> None:
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    before = strides(vae)
    with in_channels_last(vae) as memory_format:
        assert memory_format == torch.contiguous_format
        assert strides(vae) == before
