"""Atomic training checkpoints over `accelerator.save_state`: the newest complete one can always be resumed."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoprog_diffusion.files import remove, sync, write_text_atomically
from autoprog_diffusion.growth.errors import GrowthError, StateError

from .manifest import MARKER, check_files, is_intact, sealed
from .sharded import is_sharding
from .sharded_state import holds_shards, models_apart


if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)
TRAINED_FILE = "trained.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)$")


class TrainingError(GrowthError):
    """Training cannot go on."""


def save_checkpoint(accelerator: Accelerator, root: Path, step: int, limit: int | None) -> None:
    """Write `root/checkpoint-<step>`: everything under another name first, then one rename.

    Args:
        accelerator: Its registered objects, models, optimizers and random states are saved, by every rank.
        root: Folder of the run's checkpoints.
        step: Number of optimizer steps done.
        limit: None keeps all; keep only so many checkpoints; older ones are deleted after the new one is complete.
    """
    final = root / f"checkpoint-{step}"
    temporary = root / f"checkpoint-{step}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with models_apart(accelerator):
        accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _complete(temporary, final, step)
        _prune(root, limit)
    accelerator.wait_for_everyone()


def write_checkpoint(accelerator: Accelerator, root: Path, step: int, limit: int | None) -> None:
    """`save_checkpoint`, with an error that says what is left.

    Raises:
        TrainingError: It cannot be written.
    """
    try:
        save_checkpoint(accelerator, root, step, limit)
    except Exception as error:  # torch, safetensors and the file system each have their own
        # torch says of a full disk that it met an unexpected position.
        free = shutil.disk_usage(root).free // 2**20
        raise TrainingError(
            f"checkpoint-{step} cannot be written: {error} ({free} MiB are free). {newest_in_words(root)} Free space "
            "and go on with --resume_from_checkpoint latest."
        ) from error


def load_checkpoint(accelerator: Accelerator, path: Path) -> int:
    """Load a complete checkpoint into all that is prepared and registered.

    Returns:
        The number of processes that wrote it: another one is allowed where the model is sharded.

    Raises:
        StateError: It is damaged, or does not fit what is there; the message says where the two part.
    """
    states = len(list(path.glob("random_states_*.pkl")))
    if holds_shards(path) != is_sharding(accelerator):
        before, now = ("FSDP", "none") if holds_shards(path) else ("no FSDP", "FSDP")
        raise StateError(
            f"{path} was written with {before}, this run has {now}: resume with the configuration of Accelerate that "
            "the run began with."
        )
    if states != accelerator.num_processes and not is_sharding(accelerator):
        raise StateError(
            f"{path} was written by {states} processes, this run has {accelerator.num_processes}: resume with as many."
        )
    check_files(path, accelerator)
    try:
        with models_apart(accelerator):
            accelerator.load_state(str(path))
    except GrowthError:
        raise
    except Exception as error:  # torch, safetensors and Accelerate each have their own
        words = str(error).split()
        reason = " ".join(words)[:300]
        raise StateError(
            f"{path} does not fit this run: {reason}. Resume with the model and the flags that it was written with "
            "(run.json holds them)."
        ) from error
    if states != accelerator.num_processes:
        accelerator.print(
            f"resumed on {accelerator.num_processes} processes (was {states}): the noise is drawn anew, and batches "
            "are dealt out in another way."
        )
        set_seed(checkpoint_step(path), device_specific=True)
    return states


def keep_only(accelerator: Accelerator, model: nn.Module, names: Sequence[str]) -> None:
    """Let checkpoints hold only the named parameters of the model: the rest never trains, so it need not be kept."""

    def save(models: list[Any], weights: list[dict[str, Tensor]], folder: str) -> None:
        weights.clear()
        if accelerator.is_main_process:
            kept = {name: exact_value(model, name) for name in names}
            save_file(kept, Path(folder) / TRAINED_FILE)

    def load(models: list[Any], folder: str) -> None:
        models.clear()
        path = Path(folder) / TRAINED_FILE
        found = load_file(path) if path.exists() else {}
        if sorted(found) != sorted(names):
            raise StateError(
                f"{folder} holds the weights of {len(found)} parameters that train, the run has {len(names)}: resume "
                "with the settings that the checkpoint was made with."
            )
        model.load_state_dict(found, strict=False)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def exact_value(model: nn.Module, name: str) -> Tensor:
    """A parameter as the state dictionary has it: the parameter itself may be held small while it is frozen."""
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module).state_dict()[leaf].contiguous()


def newest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint written last, or None.

    Not the one of the highest step: a run that went back to an older checkpoint leaves later steps behind.
    """
    return next(reversed(_complete_ones(root)), None)


def newest_in_words(root: Path) -> str:
    """A sentence on the checkpoint that a run can go on from."""
    newest = newest_checkpoint(root)
    return "No checkpoint is complete." if newest is None else f"The newest complete checkpoint is {newest}."


def check_finite(value: float, message: str, root: Path) -> None:
    """Refuse to go on with a loss or a norm that is infinite or no number.

    Args:
        value: Of it.
        message: What it is, and one cure.
        root: Folder of the run's checkpoints.

    Raises:
        TrainingError: It also names the checkpoint that is left.
    """
    if not math.isfinite(value):
        raise TrainingError(f"{message} or use --mixed_precision bf16. {newest_in_words(root)}")


def find_checkpoint(root: Path, wanted: str | None, *, report: bool = False) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names, if it does; for `latest`, the newest complete one or None.

    Args:
        root: Folder of the run's checkpoints.
        wanted: Value of the flag.
        report: Whether to log which ones `latest` leaves aside.

    Raises:
        StateError: A named checkpoint does not exist or is not complete; the message lists those that are.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        damaged = [path.name for path in _folders(root) if report and not _is_complete(path)]
        if damaged:
            logger.warning("%s in %s are not complete, or damaged, and are left aside.", damaged, root)
        return newest_checkpoint(root)
    for path in (Path(wanted), root / wanted):
        if _NAME.search(path.name) and path.is_dir() and _is_complete(path):
            return path
    good = [path.name for path in _complete_ones(root)]
    raise StateError(f"{wanted} is not a complete checkpoint; complete ones in {root} are {good}.")


def checkpoint_step(path: Path) -> int:
    """Number of optimizer steps a checkpoint was taken after."""
    return int(_marker(path)["step"])


def _complete_ones(root: Path) -> list[Path]:
    """Complete checkpoints in the order they were written."""
    found = [path for path in _folders(root) if _is_complete(path)]
    return sorted(found, key=lambda path: _marker(path)["written"])


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("checkpoint-*")) if _NAME.match(path.name)]


def _marker(path: Path) -> dict[str, Any]:
    return json.loads((path / MARKER).read_text(encoding="utf-8"))


def _complete(temporary: Path, final: Path, step: int) -> None:
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    sizes = {}
    for path in files:
        sync(path)
        name = str(path.relative_to(temporary))
        sizes[name] = path.stat().st_size
    marker = {"step": step, "written": time.time_ns(), "files": sizes}
    write_text_atomically(temporary / MARKER, json.dumps(sealed(marker, temporary)))
    if final.exists():
        remove(final)
    os.replace(temporary, final)
    sync(final.parent)


def _is_complete(path: Path) -> bool:
    """The marker is written last and the folder renamed after it; sizes catch a file lost on disk since."""
    try:
        marker = _marker(path)
        for name, size in marker["files"].items():
            file = path / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                return False  # it would be a file of somebody else
            if file.stat().st_size != size:
                return False
        return isinstance(marker["written"], int) and is_intact(marker)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _prune(root: Path, limit: int | None) -> None:
    for leftover in root.glob("checkpoint-*.tmp"):
        remove(leftover)
    complete = _complete_ones(root)
    keep = limit or len(complete)
    for path in complete[:-keep]:
        # Renamed first: a crash in the middle of the deletion leaves a leftover, not a broken checkpoint.
        doomed = path.with_name(path.name + ".tmp")
        os.replace(path, doomed)
        remove(doomed)
