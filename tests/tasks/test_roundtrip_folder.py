"""A folder that is saved into twice holds what was trained last, also where the first save was in several files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.training.plain_pipeline import save_plain


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_an_older_pipeline_in_several_files_is_overwritten(
    pipeline_dir: Path, tmp_path: Path, variant: str | None
) -> None:
    older = StableDiffusionPipeline.from_pretrained(pipeline_dir)
    older.save_pretrained(tmp_path, max_shard_size="60KB", variant=variant)
    assert list((tmp_path / "unet").glob("*.index*.json"))
    # The folder is the model's own, as in `--output_dir model --pretrained_model_name_or_path model`.
    pipeline = load_pipeline(str(tmp_path))
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.add_(0.1)
    save_plain(pipeline, pipeline.unet, tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    for part in ("unet", "vae", "text_encoder"):
        wanted = getattr(pipeline, part).state_dict()
        found = getattr(loaded, part).state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
