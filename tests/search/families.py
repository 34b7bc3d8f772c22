"""The families of `tests/settings.py` whose scores are compared with their literal twins."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from autoprog_diffusion.growth import find_adapter
from autoprog_diffusion.growth.units import Layout
from autoprog_diffusion.search.recorded_calls import RecordedCall, map_tensors, output_tensor, output_value

from ..settings import BY_ID, Family


# One of every kind of layer, input and order that the probe meets; the rest of the table is made of the same parts.
NAMES = ("sd", "sdxl", "unet2d", "dit", "pixart", "sd3", "flux", "lumina2", "z_image", "wan", "hf_vit")
# Where timm is installed.
TIMM = ("timm_deit3", "timm_eva", "timm_volo")
SEARCHED = [BY_ID[name] for name in (*NAMES, *(name for name in TIMM if name in BY_ID))]


def model_and_calls(
    family: Family, batch: int = 4, count: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Layout, list[RecordedCall]]:
    """A model in `dtype` with no parameter at zero, its layout, and calls with random output gradients."""
    model = family.build()
    for tensor in (*model.parameters(), *model.buffers()):
        # Not model.to(): Diffusers warns about it where a class keeps modules in float32.
        tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    calls = [make_call(family, model, seed, batch, dtype) for seed in range(count)]
    return model, find_adapter(model).layout(model), calls


def make_call(family: Family, model: nn.Module, seed: int, batch: int, dtype: torch.dtype) -> RecordedCall:
    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    inputs: dict[str, Any] = map_tensors(family.inputs(seed, batch), cast)
    with torch.no_grad():
        returned = model(**inputs)
        output = output_tensor(returned)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed + 50), dtype=torch.float64)
    return RecordedCall((), inputs, gradient.to(output.dtype), listed=isinstance(output_value(returned), list))
