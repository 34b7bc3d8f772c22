"""The recipes under FSDP2 and HSDP: started by an Accelerate configuration, over gloo on the CPU.

Accelerate starts FSDP on GPUs only; `training.sharded.shard_on_cpu` does it here. All that follows is the same code.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..tasks.tiny import build_pipeline, write_images
from .launching import fsdp_environment, launch_recipe


sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "scaling"))

from traffic import Step, record  # noqa: E402


pytestmark = pytest.mark.distributed

STEPS, ACCUMULATION = 6, 2
FLAGS = (
    "--max_train_steps", STEPS, "--train_batch_size", 2, "--gradient_accumulation_steps", ACCUMULATION, "--use_ema",
    "--ema_decay", 0.9, "--max_grad_norm", 0.2, "--num_stages", 2, "--checkpointing_steps", 1, "--lr_scheduler",
    "cosine", "--lr_warmup_steps", 2, "--learning_rate", 1e-3, "--adam_epsilon", 1e-3, "--validation_prompts", "a",
    "--validation_steps", 4, "--num_inference_steps", 2,
)  # fmt: skip
BOUNDARY, INSIDE = 3, 4  # steps
WRAP = ("ResnetBlock2D", "Transformer2DModel", "conv_norm_out")  # Accelerate also shards the last norm by itself
HSDP = ("--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2")
UNET = "unet/diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Tiny:
    """A pipeline of a few kilobytes, pictures, and a folder for what runs leave."""

    root: Path

    def run(
        self, name: str, recipe: str = "sd", *flags: object, ranks: int = 2, config: str | None = "fsdp2.yaml"
    ) -> list[dict[str, Any]]:
        """One launch of a recipe, with its results in `root/name`; what each rank saw."""
        words = ["--pretrained_model_name_or_path", self.root / "model", "--train_data_dir", self.root / "images"]
        words += ["--output_dir", self.root / name, *FLAGS, *flags]
        changes = HSDP if config == "hsdp.yaml" else ()
        base = dict(os.environ) if config is None else fsdp_environment(config, ranks, *changes)
        return launch_recipe(recipe, self.root / f"{name}-log", [str(word) for word in words], base, ranks)

    def checkpoint(self, name: str, step: int) -> Path:
        return self.root / name / "checkpoints" / f"checkpoint-{step}"

    def weights(self, name: str, file: str = UNET) -> dict[str, Tensor]:
        return load_file(self.root / name / file)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("sharded")
    build_pipeline(root / "model")
    write_images(root / "images")
    return Tiny(root)


@pytest.fixture(scope="module")
def frozen(tiny: Tiny) -> list[dict[str, Any]]:
    """A run on two ranks that freezes blocks after half of its steps."""
    return tiny.run("frozen")


@pytest.fixture(scope="module")
def hybrid(tiny: Tiny) -> list[dict[str, Any]]:
    """A run on four ranks: two replicas of two shards."""
    return tiny.run("hybrid", ranks=4, config="hsdp.yaml")


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return worst(ours, theirs) == 0


def test_the_model_is_cut_between_the_ranks(frozen: list[dict[str, Any]]) -> None:
    for result in frozen:
        assert result["sharded"]
        assert result["mesh"] == [2]
        assert not result["embedding"]
        assert [row["stage"] for row in result["steps"]] == [0, 0, 0, 1, 1, 1]
    whole = frozen[0]["steps"][0]["whole"]
    assert sum(result["steps"][0]["held"] for result in frozen) == whole


def test_frozen_shards_hold_no_gradient_and_no_state(frozen: list[dict[str, Any]]) -> None:
    for result in frozen:
        for row in result["steps"]:
            assert row["idle"] == row["without gradient"] == 0
            assert row["gradients"] == row["trained"]
            assert row["moments"] == 2 * row["trained"]
        first, *_, last = result["steps"]
        assert 0 < last["trained"] < first["trained"] / 4


def expected(tiny: Tiny, order: str = "suffix") -> list[Step]:
    """One pass in every stage of the run, by the formula of docs/scale.md."""
    model = StableDiffusionPipeline.from_pretrained(tiny.root / "model").unet.train()
    config = GrowthConfig(num_stages=2, stage_embedding=False)
    growth = GrowthScheduler(model, config)
    growth.prepare(model, num_training_steps=2, optimizer=torch.optim.AdamW(growth.parameters()))
    side = model.config.sample_size
    inputs = {
        "sample": torch.randn(1, 4, side, side),
        "timestep": torch.ones(1),
        "encoder_hidden_states": torch.randn(1, 16, model.config.cross_attention_dim),
    }
    found = []
    for _ in range(2):
        step = record(model, WRAP, inputs, growth.parameters())
        found.append(Step(**{**vars(step), "stay": ("", "conv_norm_out")}))
        growth.step()
    return found


def test_bytes_are_those_of_the_formula(tiny: Tiny, frozen: list[dict[str, Any]]) -> None:
    """Every pass gathers, the last one of a step scatters the gradients of what trains."""
    for step, stage in zip((1, 5), expected(tiny)):
        forward, backward = stage.gathered(2, 4)
        for result in frozen:
            sent = result["steps"][step]["sent"]
            assert sum(sent["_allgather_base_"]) == ACCUMULATION * sum(forward + backward)
            assert sum(sent["_reduce_scatter_base_"]) == sum(stage.scattered(2, 4))


def test_the_folder_is_plain_diffusers(tiny: Tiny, frozen: list[dict[str, Any]]) -> None:
    del frozen
    loaded = StableDiffusionPipeline.from_pretrained(tiny.root / "frozen")
    assert type(loaded.unet).__name__ == "UNet2DConditionModel"
    assert same(loaded.unet.state_dict(), tiny.weights("frozen"))
    image = loaded("a", num_inference_steps=1, height=64, width=64).images[0]
    assert image.size == (64, 64)
    for picture in ("before/0.png", "validation-4.png", "before_after.png", "timeline.png", "growth.json"):
        assert (tiny.root / "frozen" / picture).exists()


def test_a_run_resumes_bit_for_bit(tiny: Tiny, frozen: list[dict[str, Any]]) -> None:
    """At a stage boundary; weights, moments and averages, as the last checkpoint and the folder hold them."""
    del frozen
    tiny.run("resumed", "sd", "--resume_from_checkpoint", tiny.checkpoint("frozen", BOUNDARY))
    assert same(tiny.weights("resumed"), tiny.weights("frozen"))
    for shard in sorted((tiny.checkpoint("frozen", STEPS) / "sharded").iterdir()):
        ours = load_file(tiny.checkpoint("resumed", STEPS) / "sharded" / shard.name)
        assert same(ours, load_file(shard))


@pytest.mark.slow
def test_the_result_is_that_of_distributed_data_parallel(tiny: Tiny, frozen: list[dict[str, Any]]) -> None:
    """The same batches and noise, with every rank holding the whole model."""
    del frozen
    tiny.run("replicated", "sd", "--no-stage_embedding", config=None)
    assert worst(tiny.weights("replicated"), tiny.weights("frozen")) < 1e-5
    assert worst(tiny.weights("replicated"), load_file(tiny.root / "model" / UNET)) > 1e-3
