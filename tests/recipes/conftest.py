"""Fixtures: the tiny pipeline and pictures, and the recipe's script in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..finetune.tiny import build_pipeline, write_images


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "finetune_sd.py"


@dataclass(frozen=True)
class Script:
    """`recipes/finetune_sd.py` with the tiny pipeline and pictures.

    Attributes:
        model: Folder of the pipeline.
        images: Folder of the pictures.
        environment: Of its processes.
    """

    model: Path
    images: Path
    environment: dict[str, str]

    def flags(self, output: Path) -> list[str]:
        return [
            "--pretrained_model_name_or_path", str(self.model), "--train_data_dir", str(self.images),
            "--output_dir", str(output), "--num_inference_steps", "2", "--search", "none",
        ]  # fmt: skip

    def command(self, output: Path, flags: tuple[object, ...], ranks: int = 1) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        start = [sys.executable, *(launcher if ranks > 1 else []), str(SCRIPT)]
        return [*start, *self.flags(output), *(str(flag) for flag in flags)]

    def run(
        self, output: Path, *flags: object, ranks: int = 1, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; a failure shows what the script printed."""
        command = self.command(output, flags, ranks)
        done = subprocess.run(
            command, env=self.environment, cwd=output.parent, capture_output=True, text=True, timeout=300, check=False
        )
        assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def kill_after(self, output: Path, checkpoint: str, *flags: object, ranks: int = 1) -> None:
        """Kill the run and all its processes as soon as a checkpoint is there."""
        with open(output.parent / "killed.log", "wb") as log:
            process = subprocess.Popen(
                self.command(output, flags, ranks), env=self.environment, cwd=output.parent, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            deadline = time.monotonic() + 240
            while not (output / "checkpoints" / checkpoint).exists():
                assert process.poll() is None, (output.parent / "killed.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not (output / "growth.json").exists(), "the run had ended before it could be killed"


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "MPLCONFIGDIR": str(tmp_path_factory.mktemp("mpl")),
    }
    model = build_pipeline(tmp_path_factory.mktemp("pipeline"))
    return Script(model, write_images(tmp_path_factory.mktemp("images")), environment)


@pytest.fixture(scope="session")
def unet_bytes() -> Callable[[Path], bytes]:
    return lambda output: (output / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
