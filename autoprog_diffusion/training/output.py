"""The output folder: refused before any work where it is not usable."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from autoprog_diffusion.growth.errors import GrowthError


RUN_FILE = "run.json"
# What says that a folder holds a run, and what else a run leaves there.
_SIGNS = (RUN_FILE, "checkpoints", "cache", "growth.json", "model_index.json", "pytorch_lora_weights.safetensors")
_SIGNS += ("class_images", "instance_images")
_LEFT = ("before", "growth_plan.json", "stage_embedding.safetensors", "before_after.png", "timeline.png", "logs")


class OutputError(GrowthError):
    """The output folder cannot be used."""


def check_output_dir(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that `folder` can be written and does not hold another run.

    Raises:
        OutputError: It is not a folder, not writable, or holds a run that is neither resumed nor overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"the output folder {folder} cannot be written: {error}. Choose another --output_dir."
        ) from error
    held = [name for name in _SIGNS if (folder / name).exists()]
    if not held or resume:
        return
    if not overwrite:
        raise OutputError(
            f"the output folder {folder} already holds a run ({', '.join(held)}): continue it with "
            "--resume_from_checkpoint latest, delete it with --overwrite_output_dir, or choose another --output_dir."
        )
    for path in [folder / name for name in (*held, *_LEFT)] + list(folder.glob("validation-*.png")):
        if not path.exists():
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
