"""Flow matching in buckets: positions and the shift of time follow the size of a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import tyro
from accelerate import Accelerator
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from autoprog_diffusion.growth import ConfigError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import FlowMatchingArguments, noise_settings
from autoprog_diffusion.tasks.flow_matching import FlowMatching, load_flow
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments

from .bucketed import batch_of, make_pictures, plan_of
from .tiny import growth_of


@pytest.fixture(scope="module")
def pictures() -> datasets.Dataset:
    return make_pictures()


@pytest.fixture
def new_flow(
    folders: dict[str, Path],
    pictures: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> Callable[..., tuple[FlowMatching, GrowthScheduler]]:
    def make(kind: str, steps: dict[int, int], *flags: object) -> tuple[FlowMatching, GrowthScheduler]:
        words = ["--max_sequence_length", 6, "--output_dir", tmp_path / "out", "--num_stages", 2, *flags]
        words += ["--direction", "unfreeze"]
        args = tyro.cli(FlowMatchingArguments, args=[str(word) for word in words])
        pipeline = load_flow(str(folders[kind]))
        growth = GrowthScheduler(pipeline.transformer, growth_of(args, 8)[0])
        growth.prepare(pipeline.transformer, num_training_steps=8)
        plan = plan_of(pictures, steps)
        side = max(steps)
        latents = make_latents(pipeline, pictures, args, new_accelerator(args), resolution=side, plan=plan)
        return FlowMatching(pipeline, latents, args.flow, noise_settings(args)), growth

    return make


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_flow_matching_follows_the_size_of_a_bucket(new_flow: Callable, kind: str) -> None:
    task, growth = new_flow(kind, {16: 8, 32: 8})
    task.enter_stage(growth)
    plan = task.latents.plan
    config = task.pipeline.scheduler.config
    shapes = set()
    for items in plan.groups(torch.arange(len(plan)), 4):
        batch = batch_of(plan, items)
        loss = task.loss(task.pipeline.transformer, batch)
        assert loss.isfinite()
        bucket = plan.buckets[int(plan.places[items[0]])]
        shapes.add((bucket.height, bucket.width))
        if kind == "sd3":
            # The pipeline's own at the full resolution, whatever the aspect ratio.
            assert task.shift == pytest.approx(config.shift * bucket.resolution / 32)
        else:
            tokens = (bucket.height // task.family.token_side) * (bucket.width // task.family.token_side)
            bounds = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
            assert task.shift == pytest.approx(np.exp(calculate_shift(tokens, *bounds)))
    assert len(shapes) > 2


def test_buckets_longer_than_a_table_of_positions_are_refused(new_flow: Callable) -> None:
    with pytest.raises(ConfigError, match=r"--buckets has sides of \d+ pixels, and this transformer's table"):
        new_flow("sd3", {64: 8})
