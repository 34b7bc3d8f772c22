"""The best weights of a run, in one file that is replaced as a whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoprog_diffusion.files import sync
from autoprog_diffusion.growth.errors import StateError


FOLDER = "best"
FILE = "weights.safetensors"
KEPT = "best"  # folder of them in a checkpoint
_STEP = "step"


class BestWeights:
    """The weights with the lowest held-out loss so far, on disk: they take no memory.

    Args:
        folder: Where the file is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    @property
    def step(self) -> int | None:
        """Optimizer steps after which they were taken; None where there are none."""
        return step_of(self.path) if self.path.exists() else None

    def save(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Replace them; a crash leaves the old ones or the new.

        Args:
            weights: Name -> tensor.
            step: Optimizer steps done.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        save_file(dict(weights), temporary, {_STEP: str(step)})
        sync(temporary)
        os.replace(temporary, self.path)

    def load(self) -> dict[str, Tensor]:
        """Name -> tensor, on the CPU."""
        return load_file(self.path)

    def keep_in(self, folder: Path) -> None:
        """Give a checkpoint the files, by second names for them where the disk can: they take no space then."""
        for path in self._files(self.path.parent):
            target = folder / KEPT
            target.mkdir(exist_ok=True)
            _link(path, target / path.name)

    def bring_beside(self, folder: Path) -> None:
        """Put what is beside the weights, such as a stage embedding, into the folder of the result."""
        for path in self._files(self.path.parent):
            if path != self.path:
                shutil.copy2(path, folder / path.name)

    def take_from(self, folder: Path, step: int | None) -> None:
        """Go back to the weights of a checkpoint.

        Args:
            folder: Of the checkpoint.
            step: That they must be of; None where it holds none.

        Raises:
            StateError: It holds others, or none.
        """
        if step is None:
            self.path.unlink(missing_ok=True)
            return
        source = folder / KEPT / FILE
        if not source.exists() or step_of(source) != step:
            raise StateError(
                f"{folder} lacks the best weights of the run, those of step {step} ({FILE}): resume another "
                "checkpoint, or train on without a held-out loss (--no-held_out) in a new --output_dir."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path in self._files(source.parent):
            target = self.path.parent / path.name
            temporary = target.with_name(f"{target.name}.tmp")
            temporary.unlink(missing_ok=True)
            _link(path, temporary)
            os.replace(temporary, target)

    def _files(self, folder: Path) -> list[Path]:
        """The complete files in a folder."""
        return sorted(folder.glob("*.safetensors"))


def step_of(path: Path) -> int:
    """Optimizer steps that the weights in a file were taken after."""
    with safe_open(path, "pt") as file:
        return int(file.metadata()[_STEP])


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without second names
        shutil.copy2(source, target)
