"""The output folder: refused before any work where it is not usable."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from autoprog_diffusion.files import METRICS_FILE, RUN_FILE, remove
from autoprog_diffusion.growth.errors import GrowthError


# What says that a folder holds a run, and what else a run leaves there.
_SIGNS = (RUN_FILE, "checkpoints", "cache", "growth.json", "model_index.json", "pytorch_lora_weights.safetensors")
_SIGNS += ("class_images", "instance_images")
_LEFT = ("before", "growth_plan.json", "stage_embedding.safetensors", "before_after.png", "timeline.png", "logs")
_LEFT += (METRICS_FILE, "held_out.json", "best", "report.html")
# Flags of a model that is read, and written again where the results go.
_MODELS = ("pretrained_model_name_or_path", "model")


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
    for path in _of_a_run(folder):
        remove(path)


def check_inputs(folder: Path, inputs: Mapping[str, str | None], *, overwrite: bool) -> None:
    """Refuse an output folder in which the run would delete, or write over, what it reads.

    Args:
        folder: The output folder.
        inputs: Flag -> file or folder that the run reads; a name that is no path here is left aside.
        overwrite: Whether a run that the folder holds is to be deleted.

    Raises:
        OutputError: The message names the flag.
    """
    whole = folder.resolve()
    doomed = [path.resolve() for path in _of_a_run(folder)] if overwrite else []
    for flag, place in inputs.items():
        if place is None or not Path(place).exists():
            continue
        path = Path(place).resolve()
        lost = path == whole and (overwrite or flag in _MODELS)
        if lost or any(path.is_relative_to(other) for other in doomed):
            raise OutputError(
                f"--{flag} {place} lies in the output folder {folder}, where this run would delete it or write over "
                "it. Choose another --output_dir."
            )


def _of_a_run(folder: Path) -> list[Path]:
    """What a run has left in a folder."""
    paths = [folder / name for name in (*_SIGNS, *_LEFT)]
    paths += folder.glob("validation-*.png")
    return [path for path in paths if path.exists()]
