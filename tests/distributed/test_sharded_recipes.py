"""The recipes under FSDP2 and HSDP: started by an Accelerate configuration, over gloo on the CPU.

Accelerate starts FSDP on GPUs only; `training.sharded.shard_on_cpu` does it here. All that follows is the same code.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..tasks.tiny import build_pipeline, write_images
from .launching import HANG, fsdp_environment, launch_recipe


ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
CONFIGS = RECIPES / "configs"
sys.path.append(str(ROOT / "benchmarks" / "scaling"))

from traffic import Step, record  # noqa: E402


pytestmark = pytest.mark.distributed

Ranks = list[dict[str, Any]]  # what each rank saw
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
    ) -> Ranks:
        """One launch of a recipe, with its results in `root/name`; what each rank saw."""
        changes = HSDP if config == "hsdp.yaml" else ()
        base = dict(os.environ) if config is None else fsdp_environment(config, ranks, *changes)
        return launch_recipe(recipe, self.root / f"{name}-log", self.words(name, *flags), base, ranks)

    def words(self, name: str, *flags: object) -> list[str]:
        """The command line of a recipe, with its results in `root/name`."""
        words = ["--pretrained_model_name_or_path", self.root / "model", "--train_data_dir", self.root / "images"]
        words += ["--output_dir", self.root / name, *FLAGS, *flags]
        return [str(word) for word in words]

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
def frozen(tiny: Tiny) -> Ranks:
    """A run on two ranks that freezes blocks after half of its steps."""
    return tiny.run("frozen")


@pytest.fixture(scope="module")
def hybrid(tiny: Tiny, frozen: Ranks) -> Ranks:
    """The same run, gone on with on four ranks: two replicas of two shards."""
    del frozen
    start = tiny.checkpoint("frozen", BOUNDARY)
    return tiny.run("hybrid", "sd", "--resume_from_checkpoint", start, ranks=4, config="hsdp.yaml")


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return worst(ours, theirs) == 0


def test_the_model_is_cut_between_the_ranks(frozen: Ranks) -> None:
    for result in frozen:
        assert result["sharded"]
        assert result["mesh"] == [2]
        assert not result["embedding"]
        assert [row["stage"] for row in result["steps"]] == [0, 0, 0, 1, 1, 1]
    whole = frozen[0]["steps"][0]["whole"]
    assert sum(result["steps"][0]["held"] for result in frozen) == whole


def test_frozen_shards_hold_no_gradient_and_no_state(frozen: Ranks) -> None:
    for result in frozen:
        for row in result["steps"]:
            assert row["idle"] == row["without gradient"] == 0
            assert row["gradients"] == row["trained"]
            assert row["moments"] == 2 * row["trained"]
        first, *_, last = result["steps"]
        assert 0 < last["trained"] < first["trained"] / 4


def expected(tiny: Tiny) -> list[Step]:
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


def test_bytes_are_those_of_the_formula(tiny: Tiny, frozen: Ranks) -> None:
    """Every pass gathers, the last one of a step scatters the gradients of what trains."""
    for step, stage in zip((1, 5), expected(tiny)):
        forward, backward = stage.gathered(2, 4)
        for result in frozen:
            sent = result["steps"][step]["sent"]
            assert sum(sent["_allgather_base_"]) == ACCUMULATION * sum(forward + backward)
            assert sum(sent["_reduce_scatter_base_"]) == sum(stage.scattered(2, 4))


def test_the_folder_is_plain_diffusers(tiny: Tiny, frozen: Ranks) -> None:
    del frozen
    loaded = StableDiffusionPipeline.from_pretrained(tiny.root / "frozen")
    assert type(loaded.unet).__name__ == "UNet2DConditionModel"
    assert same(loaded.unet.state_dict(), tiny.weights("frozen"))
    image = loaded("a", num_inference_steps=1, height=64, width=64).images[0]
    assert image.size == (64, 64)
    for picture in ("before/0.png", "validation-4.png", "before_after.png", "timeline.png", "growth.json"):
        assert (tiny.root / "frozen" / picture).exists()


def test_a_run_resumes_bit_for_bit(tiny: Tiny, frozen: Ranks) -> None:
    """At a stage boundary; weights, moments and averages, as the last checkpoint and the folder hold them."""
    del frozen
    tiny.run("resumed", "sd", "--resume_from_checkpoint", tiny.checkpoint("frozen", BOUNDARY))
    assert same(tiny.weights("resumed"), tiny.weights("frozen"))
    for shard in sorted((tiny.checkpoint("frozen", STEPS) / "sharded").iterdir()):
        ours = load_file(tiny.checkpoint("resumed", STEPS) / "sharded" / shard.name)
        assert same(ours, load_file(shard))


@pytest.mark.slow
def test_shards_travel_to_other_ranks_and_back(tiny: Tiny, frozen: Ranks, hybrid: Ranks) -> None:
    """From two ranks to four without a bit lost; from four, in two replicas, to two."""
    del frozen
    assert hybrid[0]["mesh"] == [2, 2]
    tiny.run("spread", "sd", "--resume_from_checkpoint", tiny.checkpoint("frozen", STEPS), ranks=4)
    assert same(tiny.weights("spread"), tiny.weights("frozen"))
    tiny.run("gathered", "sd", "--resume_from_checkpoint", tiny.checkpoint("hybrid", STEPS))
    assert same(tiny.weights("gathered"), tiny.weights("hybrid"))
    assert 0 < worst(tiny.weights("hybrid"), tiny.weights("frozen")) < 0.1


@pytest.mark.slow
def test_replicas_reduce_what_the_shards_have_left(tiny: Tiny, hybrid: Ranks) -> None:
    """HSDP: the formula of docs/scale.md, for the last step, whose single pass ends an epoch."""
    _, stage = expected(tiny)
    forward, backward = stage.gathered(2, 4)
    for result in hybrid:
        sent = result["steps"][-1]["sent"]
        assert sum(sent["_allgather_base_"]) == sum(forward + backward)
        assert sum(sent["_reduce_scatter_base_"]) == sum(stage.scattered(2, 4))
        reduced = Counter(sent["allreduce_"])
        assert not Counter(stage.reduced_by_hsdp(2, 4)) - reduced
        rest = reduced - Counter(stage.reduced_by_hsdp(2, 4))
        assert max(rest) <= 16  # the loss, and the gradient's norm
    assert len({result["steps"][1]["held"] for result in hybrid[::2]}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["unfreeze", "window"])
@pytest.mark.parametrize("step", [BOUNDARY, INSIDE])
def test_every_direction_resumes_bit_for_bit(tiny: Tiny, direction: str, step: int) -> None:
    flags = ("--direction", direction)
    if not (tiny.root / direction).exists():
        for result in tiny.run(direction, "sd", *flags):
            assert all(row["idle"] == row["without gradient"] == 0 for row in result["steps"])
            assert all(row["moments"] == 2 * row["trained"] for row in result["steps"])
    name = f"{direction}-{step}"
    tiny.run(name, "sd", *flags, "--resume_from_checkpoint", tiny.checkpoint(direction, step))
    assert same(tiny.weights(name), tiny.weights(direction))


@pytest.mark.slow
def test_adapters_are_kept_alone_and_saved_whole(tiny: Tiny) -> None:
    flags = ("--rank", 4, "--target_modules", "to_q", "to_v", "conv1")
    (first, _) = tiny.run("lora", "lora", *flags)
    tiny.run("lora-resumed", "lora", *flags, "--resume_from_checkpoint", tiny.checkpoint("lora", BOUNDARY))
    file = "pytorch_lora_weights.safetensors"
    assert same(tiny.weights("lora-resumed", file), tiny.weights("lora", file))
    pipeline = StableDiffusionPipeline.from_pretrained(tiny.root / "model")
    pipeline.load_lora_weights(tiny.root / "lora")
    kept = set()
    for shard in (tiny.checkpoint("lora", STEPS) / "sharded").iterdir():
        kept |= {name for name in load_file(shard) if name.startswith("model.")}
    assert kept
    assert all("lora" in name for name in kept)
    assert all(row["idle"] == 0 for row in first["steps"])


@pytest.mark.slow
def test_half_precision_leaves_a_float32_pipeline(tiny: Tiny, frozen: Ranks) -> None:
    del frozen
    tiny.run("half", "sd", "--mixed_precision", "bf16")
    weights = tiny.weights("half")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert 0 < worst(weights, tiny.weights("frozen")) < 0.05


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_nothing_is_loaded(tiny: Tiny, frozen: Ranks) -> None:
    del frozen
    copy = tiny.root / "damaged" / "checkpoint-4"
    shutil.copytree(tiny.checkpoint("frozen", 4), copy)
    shard = next((copy / "sharded").glob("shard-00002*"))
    content = bytearray(shard.read_bytes())
    content[-9] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RuntimeError, match=f"is damaged: sharded/{shard.name} changed since"):
        tiny.run("undamaged", "sd", "--resume_from_checkpoint", copy)


@pytest.mark.slow
def test_a_sharded_checkpoint_resumes_under_fsdp_alone(tiny: Tiny, frozen: Ranks) -> None:
    del frozen
    with pytest.raises(RuntimeError, match="was written with FSDP, this run has none: resume with the configuration"):
        tiny.run("unsharded", "sd", "--resume_from_checkpoint", tiny.checkpoint("frozen", 4), config=None)


@pytest.mark.slow
def test_the_result_is_that_of_distributed_data_parallel(tiny: Tiny, frozen: Ranks) -> None:
    """The same batches and noise, with every rank holding the whole model."""
    del frozen
    tiny.run("replicated", "sd", "--no-stage_embedding", config=None)
    assert worst(tiny.weights("replicated"), tiny.weights("frozen")) < 1e-5
    assert worst(tiny.weights("replicated"), load_file(tiny.root / "model" / UNET)) > 1e-3


def wait_for(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + HANG
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_accelerate_launch_hears_a_signal_and_its_command_goes_on(tiny: Tiny, frozen: Ranks) -> None:
    """The whole way of a user: the committed configuration, a signal to the second rank, and the printed command."""
    del frozen
    output = tiny.root / "launched"
    config = ["--config_file", str(CONFIGS / "fsdp2.yaml"), "--num_processes", "2", "--mixed_precision", "no"]
    command = [
        "-m",
        "accelerate.commands.launch",
        *config,
        "--main_process_port",
        "0",
        str(RECIPES / "finetune_sd.py"),
    ]
    command += tiny.words("launched")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HOME": str(tiny.root / "hub")}
    log = tiny.root / "launched.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=stream, stderr=stream)
        wait_for(tiny.checkpoint("launched", 1), process, log)
        children = psutil.Process(process.pid).children()
        (second,) = [child.pid for child in children if child.environ().get("RANK") == "1"]
        os.kill(second, signal.SIGTERM)
        assert process.wait(timeout=HANG) == 1
    text = log.read_text()
    assert "stopped by SIGTERM after step " in text
    assert not (output / "model_index.json").exists()
    (line,) = [line for line in text.splitlines() if line.startswith("go on with: ")]
    words = shlex.split(line.removeprefix("go on with: "))
    assert words[1:] == [*command, "--resume_from_checkpoint", "latest"]
    subprocess.run([sys.executable, *words[1:]], env=environment, check=True, timeout=HANG, capture_output=True)
    assert same(tiny.weights("launched"), tiny.weights("frozen"))


@pytest.mark.slow
def test_evaluations_are_those_of_replicas_and_the_best_shards_are_saved(tiny: Tiny) -> None:
    flags = ("--validation_data_dir", tiny.root / "images", "--evaluation_steps", 1, "--learning_rate", 0.1)
    tiny.run("held", "sd", *flags)
    tiny.run("held-replicated", "sd", *flags, "--no-stage_embedding", config=None)
    files = [tiny.root / name / "held_out.json" for name in ("held", "held-replicated")]
    sharded, replicated = (json.loads(file.read_text()) for file in files)
    steps = [row["step"] for row in sharded["evaluations"]]
    assert steps == [row["step"] for row in replicated["evaluations"]] == list(range(STEPS + 1))
    for ours, theirs in zip(sharded["evaluations"][:3], replicated["evaluations"]):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    kept = load_file(tiny.checkpoint("held", STEPS) / "best" / "weights.safetensors")
    assert same(tiny.weights("held"), kept)
