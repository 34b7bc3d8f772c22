"""The table of Diffusers' scripts that growth is plugged into, their diffs, and how a test runs one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import pipelines


ROOT = Path(__file__).parents[2]
DIFFS = ROOT / "docs" / "diffs"
OFF = "GrowthConfig(num_stages=1, min_trainable=1.0, stage_embedding=False)"
TWO_STAGES = 'GrowthConfig(num_stages=2, order="interleaved", direction="unfreeze")'
CHECKOUT = os.environ.get("DIFFUSERS_CHECKOUT")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="needs Diffusers' scripts: set DIFFUSERS_CHECKOUT to a checkout of its repository"
)


@dataclass(frozen=True)
class Script:
    """One training script of Diffusers.

    Attributes:
        name: Of the file, without its ending.
        folder: Of the file in `examples/`.
        build: Makes the tiny pipeline it trains.
        model: Its variable for the model that grows.
        component: The pipeline's name of that model.
        flags: What it is run with, beside the ones `command` adds.
        ema_flags: What turns its EMA on.
        lora: It trains an adapter and saves only that.
        variant: Sets a row apart from another one of the same script.
        idle: Names of trained parameters that never get a gradient in the script itself.
    """

    name: str
    folder: str
    build: Callable[[], Any]
    model: str
    component: str
    flags: tuple[str, ...]
    ema_flags: tuple[str, ...] = ()
    lora: bool = False
    variant: str = ""
    idle: tuple[str, ...] = ()

    @property
    def config(self) -> str:
        """What its diff says and a user edits."""
        return f"GrowthConfig.for_model({self.model})"

    @property
    def averages(self) -> bool:
        """Whether its diff adds an average: it has none of its own."""
        return not self.ema_flags

    @property
    def id(self) -> str:
        return self.name + self.variant

    @property
    def path(self) -> str:
        return f"examples/{self.folder}/{self.name}.py"

    @property
    def diff(self) -> str:
        return (DIFFS / f"{self.name}.diff").read_text(encoding="utf-8")


LATENT = ("--resolution", "16", "--max_train_steps", "4", "--lr_warmup_steps", "0", "--lr_scheduler", "constant",
          "--seed", "0", "--train_batch_size", "2", "--learning_rate", "1e-2")  # fmt: skip
DREAMBOOTH = (*LATENT, "--instance_data_dir", "{instances}", "--instance_prompt", "a picture")

SCRIPTS = [
    Script(
        "train_text_to_image", "text_to_image", pipelines.stable_diffusion, "unet", "unet",
        (*LATENT, "--train_data_dir", "{images}"), ("--use_ema", "--foreach_ema"),
    ),
    Script(
        "train_text_to_image_sdxl", "text_to_image", pipelines.sdxl, "unet", "unet",
        (*LATENT, "--train_data_dir", "{images}", "--caption_column", "text", "--gradient_checkpointing"),
        ("--use_ema",),
    ),
    Script("train_dreambooth", "dreambooth", pipelines.stable_diffusion, "unet", "unet", DREAMBOOTH),
    Script(
        "train_dreambooth_lora_sd3", "dreambooth", pipelines.sd3, "transformer", "transformer",
        (*DREAMBOOTH, "--max_sequence_length", "16", "--gradient_checkpointing"), lora=True,
        idle=("transformer_blocks.3.attn.add_q_proj.lora_B.weight",),  # the last block has no text output
    ),
    Script(
        "train_dreambooth_lora_flux", "dreambooth", pipelines.flux, "transformer", "transformer",
        (*DREAMBOOTH, "--max_sequence_length", "16"), lora=True,
    ),
    Script(
        "train_unconditional", "unconditional_image_generation", pipelines.unconditional, "model", "unet",
        ("--train_data_dir", "{images}", "--resolution", "16", "--num_epochs", "2", "--train_batch_size", "2",
         "--learning_rate", "1e-2", "--lr_scheduler", "constant", "--ddpm_num_inference_steps", "2",
         "--eval_batch_size", "1"),
        ("--use_ema",),
    ),
]  # fmt: skip
BY_NAME = {script.name: script for script in SCRIPTS}
WITH_TEXT_ENCODER = Script(
    "train_dreambooth", "dreambooth", pipelines.stable_diffusion, "unet", "unet",
    (*DREAMBOOTH, "--train_text_encoder"), variant="-text_encoder",
)  # fmt: skip

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.id)
every_run = pytest.mark.parametrize("script", [*SCRIPTS, WITH_TEXT_ENCODER], ids=lambda script: script.id)


@dataclass(frozen=True)
class Line:
    """One line of a diff: its sign (` `, `+` or `-`), text, and number in the patched file (for `-`, of the next)."""

    sign: str
    text: str
    number: int


def parse_diff(diff: str) -> list[Line]:
    """The lines of a one-file diff's hunks; the counts in the hunks' headers must be right."""
    lines: list[Line] = []
    for hunk in re.split(r"^(?=@@ )", diff, flags=re.MULTILINE)[1:]:
        head, *body = hunk.splitlines()
        old, start, new = (int(number) for number in re.findall(r"^@@ -\d+,(\d+) \+(\d+),(\d+) @@", head)[0])
        assert (old, new) == (sum(line[0] != "+" for line in body), sum(line[0] != "-" for line in body)), head
        for line in body:
            assert line[0] in " +-", line
            lines.append(Line(line[0], line[1:], start))
            start += line[0] != "-"
    return lines


def patched(script: Script, folder: Path, config: str | None = None, *, average: bool = True) -> Path:
    """A patched copy of the script under `folder`, with another configuration, or without the average of its diff."""
    assert CHECKOUT is not None
    copy = folder / script.path
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(CHECKOUT) / script.path, copy)
    command = ["patch", "-p1", "--fuzz=0", "-i", str(DIFFS / f"{script.name}.diff")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "offset" not in done.stdout, done.stdout
    text = copy.read_text(encoding="utf-8")
    assert text.count(script.config) == 1
    if config is not None:
        text = text.replace(script.config, config)
    if not average:
        lines = [line for line in text.splitlines(keepends=True) if not line.strip().startswith("average")]
        text = "".join(lines).replace("GrowthScheduler, PowerAverage", "GrowthScheduler")
    copy.write_text(text, encoding="utf-8")
    return copy


@dataclass(frozen=True)
class Run:
    """What a finished script left: its log and its output folder."""

    log: str
    output: Path


@dataclass(frozen=True)
class Workshop:
    """Pipelines and pictures on disk, and the environment of the scripts' processes."""

    folder: Path
    environment: dict[str, str]

    def pipeline(self, script: Script) -> Path:
        folder = self.folder / script.build.__name__
        return folder if folder.exists() else pipelines.save_pipeline(script.build, folder)

    def command(self, script: Script, file: Path, output: Path, flags: tuple[str, ...]) -> list[str]:
        places = {"{images}": str(self.folder / "images"), "{instances}": str(self.folder / "instances")}
        model = ["--pretrained_model_name_or_path", str(self.pipeline(script))]
        if script.build is pipelines.unconditional:
            model = ["--model_config_name_or_path", str(self.pipeline(script) / "unet")]
        given = [places.get(flag, flag) for flag in (*script.flags, *flags)]
        common = ["--output_dir", str(output), "--gradient_accumulation_steps", "2", "--checkpointing_steps", "2"]
        return [str(Path(__file__).with_name("run_script.py")), str(file), *model, *common, *given]

    def run(self, script: Script, file: Path, output: Path, *flags: str, ranks: int = 1) -> Run:
        """Run a script to its end; a failure or a hang shows what it printed."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        command = [sys.executable, *(launcher if ranks > 1 else []), *self.command(script, file, output, flags)]
        output.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            command, env=self.environment, cwd=output.parent, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return Run(done.stdout + done.stderr, output)

    def plain(self, script: Script, folder: Path, *flags: str) -> Run:
        """Run Diffusers' own script."""
        assert CHECKOUT is not None
        return self.run(script, Path(CHECKOUT) / script.path, folder / "plain", *flags)

    def grow(self, script: Script, folder: Path, *flags: str, config: str = TWO_STAGES, ranks: int = 1) -> Run:
        """Run the patched script with `config`, its own average alone."""
        file = patched(script, folder / "source", config, average=False)
        return self.run(script, file, folder / "grown", *flags, ranks=ranks)
