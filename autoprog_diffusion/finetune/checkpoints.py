"""Atomic training checkpoints over `accelerator.save_state`: the newest complete one can always be resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from autoprog_diffusion.growth.errors import StateError

from .output import write_text_atomically


if TYPE_CHECKING:
    from accelerate import Accelerator

MARKER = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


def save_checkpoint(accelerator: Accelerator, root: Path, step: int, limit: int | None) -> None:
    """Write `root/checkpoint-<step>`: everything under another name first, then one rename.

    Args:
        accelerator: Its registered objects, models, optimizers and random states are saved, by every rank.
        root: Folder of the run's checkpoints.
        step: Number of optimizer steps done.
        limit: Keep only so many checkpoints; older ones are deleted after the new one is complete.
    """
    final, temporary = root / f"checkpoint-{step}", root / f"checkpoint-{step}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _complete(temporary, final, step)
        _prune(root, limit)
    accelerator.wait_for_everyone()


def newest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    found = [(step, path) for step, path in _listed(root) if _is_complete(path)]
    return max(found)[1] if found else None


def find_checkpoint(root: Path, wanted: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names; for `latest`, the newest complete one or None.

    Raises:
        StateError: A named checkpoint does not exist or is not complete; the message lists those that are.
    """
    if wanted == "latest":
        return newest_checkpoint(root)
    for path in (Path(wanted), root / wanted):
        if _NAME.search(path.name) and path.is_dir() and _is_complete(path):
            return path
    good = [path.name for _, path in sorted(_listed(root)) if _is_complete(path)]
    raise StateError(f"{wanted} is not a complete checkpoint; complete ones in {root} are {good}.")


def checkpoint_step(path: Path) -> int:
    """Number of optimizer steps a checkpoint was taken after."""
    return int(json.loads((path / MARKER).read_text(encoding="utf-8"))["step"])


def _listed(root: Path) -> list[tuple[int, Path]]:
    paths = root.iterdir() if root.is_dir() else ()
    return [(int(match[1]), path) for path in paths if (match := _NAME.match(path.name))]


def _complete(temporary: Path, final: Path, step: int) -> None:
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    sizes = {str(path.relative_to(temporary)): path.stat().st_size for path in files}
    write_text_atomically(temporary / MARKER, json.dumps({"step": step, "files": sizes}))
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    _sync(final.parent)


def _is_complete(path: Path) -> bool:
    """The marker is written last and the folder renamed after it; sizes catch a file lost on disk since."""
    try:
        files = json.loads((path / MARKER).read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _prune(root: Path, limit: int | None) -> None:
    for leftover in root.glob("checkpoint-*.tmp"):
        shutil.rmtree(leftover)
    complete = [path for _, path in sorted(_listed(root)) if _is_complete(path)]
    for path in complete[: len(complete) - limit] if limit else []:
        # Renamed first: a crash in the middle of the deletion leaves a leftover, not a broken checkpoint.
        doomed = path.with_name(path.name + ".tmp")
        os.replace(path, doomed)
        shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
