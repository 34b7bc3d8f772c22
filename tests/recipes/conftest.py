"""Fixtures: the tiny pipeline and pictures, and the recipe's script in processes of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from autoprog_diffusion.training.diffusion import DiffusionTrainer
from autoprog_diffusion.training.recipe import Recipe
from autoprog_diffusion.training.run import begin
from autoprog_diffusion.training.samples import Pictures

from ..tasks.conftest import forget
from ..tasks.tiny import build_pipeline, build_sdxl, write_images


sys.path.append(str(Path(__file__).resolve().parents[1]))

from fork_server import forked_results, launch_environments  # noqa: E402


ROOT = Path(__file__).parents[2]
NewRun = Callable[..., tuple[Any, DiffusionTrainer, Pictures]]


def load_recipe(name: str) -> ModuleType:
    """The module of `recipes/<name>.py`, which is no package."""
    spec = importlib.util.spec_from_file_location(f"{name}_under_test", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Script:
    """A recipe with a tiny pipeline and pictures, in processes of its own.

    Attributes:
        name: `recipes/<name>.py`.
        model: Folder of the pipeline.
        images: Folder of the pictures.
        environment: Of its processes.
    """

    name: str
    model: Path
    images: Path
    environment: dict[str, str]

    def flags(self, output: Path) -> list[str]:
        return [
            "--pretrained_model_name_or_path", str(self.model), "--train_data_dir", str(self.images),
            "--output_dir", str(output), "--num_inference_steps", "2", "--search", "none",
        ]  # fmt: skip

    def command(self, output: Path, flags: tuple[object, ...], ranks: int = 1) -> list[str]:
        return self.bare_command((*self.flags(output), *flags), ranks)

    def bare_command(self, flags: tuple[object, ...], ranks: int = 1) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        script = str(ROOT / "recipes" / f"{self.name}.py")
        return [sys.executable, *(launcher if ranks > 1 else []), script, *(str(flag) for flag in flags)]

    def run(
        self, output: Path, *flags: object, ranks: int = 1, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; a failure shows what the script printed."""
        return self.run_bare((*self.flags(output), *flags), ranks, check)

    def run_bare(
        self, flags: tuple[object, ...], ranks: int = 1, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end with these flags alone, in forked processes: a start imports nothing."""
        folder, words = self.model.parent, [str(flag) for flag in flags]
        script = ROOT / "recipes" / f"{self.name}.py"
        codes, printed = forked_results(script, words, launch_environments(ranks, self.environment), folder)
        status = next((code for code in codes if code), 0 if None not in codes else 1)
        done = subprocess.CompletedProcess([str(script), *words], status, printed[0], "".join(printed))
        assert not check or done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    def kill_after(self, output: Path, checkpoint: str, *flags: object, ranks: int = 1) -> None:
        """Kill the run and all its processes as soon as a checkpoint is there."""
        with open(output.parent / "killed.log", "wb") as log:
            process = subprocess.Popen(
                self.command(output, flags, ranks), env=self.environment, cwd=output.parent, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            deadline = time.monotonic() + 900
            while not (output / "checkpoints" / checkpoint).exists():
                assert process.poll() is None, (output.parent / "killed.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not (output / "growth.json").exists(), "the run had ended before it could be killed"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "MPLCONFIGDIR": str(tmp_path_factory.mktemp("mpl")),
    }


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Script:
    model = build_pipeline(tmp_path_factory.mktemp("pipeline"))
    return Script("finetune_sd", model, write_images(tmp_path_factory.mktemp("images")), environment)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its state in class attributes: start and leave as a new process would."""
    forget()
    yield
    forget()


@pytest.fixture(scope="session")
def sdxl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[NewRun]:
    """A recipe in this process, ready to train: its pipeline, trainer and pictures."""

    def make(recipe: Recipe, *flags: object) -> tuple[Any, DiffusionTrainer, Pictures]:
        forget()
        output = ("--output_dir", tmp_path / "out", "--cache_dir", tmp_path / "hub", "--num_inference_steps", 2)
        (tmp_path / "out").mkdir(exist_ok=True)
        args = recipe.parse([str(flag) for flag in (*output, "--search", "none", *flags)])
        accelerator = recipe.make_accelerator(args)
        trainer = recipe.get_ready(args, accelerator)
        begin(trainer, args)
        assert trainer.pictures is not None
        return recipe.pipeline, trainer, trainer.pictures

    yield make
    forget()


@pytest.fixture(scope="session")
def unet_bytes() -> Callable[[Path], bytes]:
    return lambda output: (output / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
