"""Every family of flow-matching models takes a bucket that is no square as its own pipeline does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autoprog_diffusion.tasks.flow_matching import flow_family, load_flow
from autoprog_diffusion.training.samples import sampling, seeds

from .tiny_families import BUILD
from .tiny_transformers import build_flux, build_sd3, save


HEIGHT, WIDTH, LENGTH = 32, 64, 300
ALL = {"sd3": build_sd3, "flux": build_flux, **BUILD}
# Samplers of Diffusers under NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def unpacked(kind: str, latents: Tensor, height: int, width: int) -> Tensor:
    """Packed tokens as pictures."""
    if kind == "flux2":
        return latents.transpose(1, 2).unflatten(2, (height // 8, width // 8))
    if kind in ("flux", "qwen_image"):
        return F.pixel_shuffle(latents.transpose(1, 2).unflatten(2, (height // 8, width // 8)), 2)
    return latents


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "high"])
@pytest.mark.parametrize("kind", ALL)
def test_the_velocity_of_a_bucket_is_what_the_pipeline_gives_its_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, turned: bool
) -> None:
    height, width = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
    pipeline: Any = load_flow(str(save(tmp_path / kind, ALL[kind])))
    pipeline.transformer.eval()
    family = flow_family(pipeline, guidance=1.0)
    length = 6 if kind in ("sd3", "flux") else LENGTH
    calls: list[tuple[Any, ...]] = []
    step = pipeline.scheduler.step
    monkeypatch.setattr(pipeline.scheduler, "step", lambda *args, **more: calls.append(args) or step(*args, **more))
    with sampling(pipeline):
        arguments = family.drawing(0.0 if kind != "flux" else 1.0, length)
        pipeline(
            prompt=["ab c"], height=height, width=width, num_inference_steps=2, generator=seeds(0, 1), **arguments
        )
    tokens, pooled = family.encode(["ab c"], length)
    assert len(calls) == 2
    for output, timestep, sample in calls:
        noisy = unpacked(kind, sample, height, width)
        assert noisy.shape[-1] * height == noisy.shape[-2] * width
        sigma = torch.as_tensor([float(timestep) / 1000])
        with torch.no_grad():
            ours = family.predict(pipeline.transformer, noisy, sigma, tokens=tokens, pooled=pooled)
        torch.testing.assert_close(ours, unpacked(kind, output, height, width), rtol=1e-4, atol=1e-5)
