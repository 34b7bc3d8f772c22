"""Damaged checkpoints: a resume refuses them, or continues with what was saved, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from autoprog_diffusion.growth import GrowthConfig, GrowthScheduler
from autoprog_diffusion.training.arguments import OutputArguments
from autoprog_diffusion.training.checkpoints import MARKER, find_checkpoint, save_checkpoint
from autoprog_diffusion.training.trainer import Trainer

from .mutate import changed_value, damaged, flipped, require
from .settings import STEPS, Stack


class SmallTrainer(Trainer):
    """A real trainer of a stack of linear layers, with an average of its weights."""

    def __init__(self, folder: Path) -> None:
        model = Stack()
        growth = GrowthScheduler(model, GrowthConfig(num_stages=3), accelerator := Accelerator(), blocks=["layers.*"])
        output = OutputArguments(output_dir=str(folder))
        super().__init__(model, growth, accelerator, output=output, resolution=8, accumulation=1, max_norm=None)
        optimizer = torch.optim.AdamW(growth.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(model, optimizer, schedule)
        self.max_steps = STEPS
        self.epoch_batches = STEPS
        growth.prepare(self.model, num_training_steps=STEPS)
        self.ema = EMAModel(model.parameters(), decay=0.9)
        accelerator.register_for_checkpointing(self.metrics, self.ema)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    def batches(self) -> Iterator[Tensor]:
        while True:
            yield torch.randn(4, 4)

    def enter_stage(self) -> None:
        """Nothing to get ready."""

    def average(self) -> None:
        self.ema.step(self.growth.ema_parameters())  # type: ignore[attr-defined]

    def validate(self) -> None:
        """Nothing to look at."""

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must bring back."""
        return {
            "step": self.step,
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "growth": self.growth.state_dict(),
            "rows": self.metrics.rows,
            "ema": self.ema.state_dict(),
            "random": torch.get_rng_state(),
        }


class Checkpoints:
    """Two checkpoints, of which the newer is damaged; the trainer is in another state before every resume."""

    def __init__(self, folder: Path) -> None:
        self._kept = folder / "kept"
        self._trainer = SmallTrainer(folder)
        self._root = self._trainer.root
        self._states: dict[int, str] = {}
        for step in (3, 5):
            self._train_to(step)
            save_checkpoint(self._trainer.accelerator, self._kept, step, None)
            self._states[step] = _words(self._trainer.state())
        self._train_to(7)

    def case(self, chance: random.Random) -> str:
        """Damage one file, resume, and compare everything."""
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._kept, self._root)
        newest = self._root / "checkpoint-5"
        old = chance.random() < 0.3
        if old:
            _forget_checksums(newest)
        self._damage(chance, newest)
        if not self._trainer.resume(chance.choice(["latest", "latest", "checkpoint-5"])):
            return "refused"
        found = _words(self._trainer.state())
        known = self._states[self._trainer.step]
        # Without a checksum nobody can tell a flipped bit of a weight.
        require(old or found == known, f"a damaged checkpoint of step {self._trainer.step} was used")
        return "resumed"

    def _train_to(self, step: int) -> None:
        self._trainer.max_steps = step
        self._trainer.train()
        self._trainer.max_steps = STEPS

    def _damage(self, chance: random.Random, folder: Path) -> None:
        path = chance.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
        kind = chance.random()
        if kind < 0.1:
            path.unlink()
        elif kind < 0.3 and path.name == MARKER:
            path.write_text(json.dumps(changed_value(chance, json.loads(path.read_text()))))
        elif kind < 0.7:
            path.write_bytes(flipped(chance, path.read_bytes()))
        else:
            path.write_bytes(damaged(chance, path.read_bytes()))


class OldCheckpoints(Checkpoints):
    """Checkpoints from before checksums, whose damage is consistent with the marker's sizes."""

    def case(self, chance: random.Random) -> str:
        """Damage a file and note its new size, as somebody who repairs a marker would."""
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.copytree(self._kept, self._root)
        newest = self._root / "checkpoint-5"
        files = sorted(file for file in newest.rglob("*") if file.is_file() and file.name != MARKER)
        path = chance.choice(files)
        path.write_bytes(damaged(chance, path.read_bytes()))
        _forget_checksums(newest)
        marker = json.loads((newest / MARKER).read_text())
        marker["files"][path.name] = path.stat().st_size
        (newest / MARKER).write_text(json.dumps(marker))
        require(find_checkpoint(self._root, "latest") == newest, "the repaired marker is not believed")
        self._trainer.resume("latest")
        return "resumed"


def _forget_checksums(folder: Path) -> None:
    marker = json.loads((folder / MARKER).read_text())
    kept = {name: marker[name] for name in ("step", "written", "files")}
    (folder / MARKER).write_text(json.dumps(kept))


def _words(value: Any) -> str:
    """A text that is equal for equal states."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.detach().cpu().numpy().tobytes().hex()}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_words(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_words, value)) + "]"
    return repr(value)
