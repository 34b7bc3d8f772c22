"""What tests of the pretraining loop share: a tiny data set, a tiny model and a trainer of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprog_diffusion.training.run import begin
from autoprog_diffusion.vit.training.arguments import Arguments, parse
from autoprog_diffusion.vit.training.pretraining import Pretraining
from autoprog_diffusion.vit.training.trainer import ViTScript, ViTTrainer


NewTrainer = Callable[..., ViTTrainer]
FLAGS = (
    "--model transformers:vit --model_kwargs num_hidden_layers 4 hidden_size 16 num_attention_heads 2 patch_size 4 "
    "--img_size 16 --resolutions 8 16 --num_stages 2 --min_depth 0.5 --batch_size 8 --max_train_steps 12 "
    "--warmup_steps 2 --lr 3e-3 --mixup 0.2 --drop_path 0.1 --crop pad --search fixed --search_samples 16 "
    "--search_steps 3 --evaluations 2 --model_ema_decay 0.5 --clip_grad 1.0"
).split()


def make_npz(folder: Path, count: int = 72, classes: int = 3, size: int = 16) -> Path:
    """Noise with a tint that says the class; a quarter for validation."""
    rng = np.random.default_rng(0)
    y = np.arange(count) % classes
    x = rng.integers(0, 120, (count, size, size, 3), dtype=np.uint8)
    x[np.arange(count), :, :, y] += 60
    path = folder / "tints.npz"
    names = np.array([f"class {label}" for label in range(classes)])
    np.savez(path, x=x, y=y, test=np.arange(count) % 4 == 3, classes=names)
    return path


def tiny_arguments(folder: Path, *flags: str) -> Arguments:
    data = folder / "tints.npz"
    if not data.exists():
        make_npz(folder)
    return parse([*FLAGS, "--train_data", str(data), "--output_dir", str(folder / "out"), *flags])


def weights(trainer: ViTTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.bare.state_dict().items()}


def averages(trainer: ViTTrainer) -> dict[str, Tensor]:
    with trainer.averaged():
        return weights(trainer)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def new_trainer_in(folder: Path) -> NewTrainer:
    """A function that makes trainers as a run does, each with an accelerator of its own."""
    from accelerate.state import AcceleratorState

    def make(*flags: str) -> ViTTrainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        args = tiny_arguments(folder, *flags)
        Path(args.output.output_dir).mkdir(exist_ok=True)
        return start(Pretraining(), args)

    return make


def start(script: ViTScript[Any], args: Any) -> ViTTrainer:
    """The trainer of a run, resumed if that is asked for, in a folder that may hold another run."""
    accelerator = script.make_accelerator(args)
    trainer = script.get_ready(args, accelerator)
    begin(trainer, args)
    return trainer
