"""`run.json`: the settings of every start of a run, and what a resumed start may change of them."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from autoprog_diffusion.command_line import script_name, typed_command
from autoprog_diffusion.files import RUN_FILE, write_text_atomically
from autoprog_diffusion.growth.errors import StateError
from autoprog_diffusion.growth.values import JSON

from .arguments import flat
from .flag_classes import OF_THE_START, changes


if TYPE_CHECKING:
    from accelerate import Accelerator

DATA_KEY = "data_report"  # what the data holds: beside the groups of flags
PACKAGES = ("autoprog-diffusion", "torch", "accelerate", "diffusers", "transformers", "peft", "timm", "datasets")


def settings_of(args: Any) -> JSON:
    """The arguments of a script as JSON reads them back: groups of flags with their values."""
    return json.loads(json.dumps(dataclasses.asdict(args)))


def read_starts(file: Path) -> list[JSON]:
    """The starts that a `run.json` tells of, the first one first; none without the file.

    A file of a version that kept no history holds the settings of one start.

    Raises:
        StateError: The file cannot be read.
    """
    if not file.exists():
        return []
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return _starts_in(values)
    except (OSError, ValueError) as error:
        raise StateError(
            f"{file}, the settings of the run, cannot be read: {error}. Put it back, or delete it."
        ) from error


def _starts_in(values: Any) -> list[JSON]:
    """The starts in what a `run.json` holds.

    Raises:
        ValueError: It holds something else.
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__} instead of settings")
    values.pop(DATA_KEY, None)
    starts = values.get("starts") or [{"step": 0, "settings": values}]
    for start in starts if isinstance(starts, list) else [starts]:
        known = start if isinstance(start, dict) else {}
        if not isinstance(known.get("step"), int) or not isinstance(known.get("settings"), dict):
            raise ValueError("an entry of its starts lacks step or settings")
    if not isinstance(starts, list):
        raise ValueError("its starts are no list")
    return starts


def starts_before(checkpoint: Path) -> list[JSON]:
    """The starts that led to a checkpoint.

    Each checkpoint holds the file; older ones do not, and their run's lies two folders up.
    """
    return read_starts(checkpoint / RUN_FILE) or read_starts(checkpoint.parents[1] / RUN_FILE)


def keep_in_checkpoints(accelerator: Accelerator, file: Path) -> None:
    """Let every checkpoint hold a copy of `run.json`, so that it can be resumed from wherever it is copied to."""

    def save(models: list[Any], weights: list[Any], folder: str) -> None:
        del models, weights
        if accelerator.is_main_process and file.exists():
            shutil.copy(file, Path(folder) / RUN_FILE)

    accelerator.register_save_state_pre_hook(save)


def check_same_run(
    starts: Sequence[JSON], args: Any, num_processes: int | None, where: Path, *, precision: str | None = None
) -> None:
    """Refuse to resume where something differs that must be equal; a run without known settings passes.

    Args:
        starts: The starts that led to the checkpoint.
        args: Today's arguments.
        num_processes: Today's number of processes; None where another number is allowed.
        where: Folder of the earlier run, for the message.
        precision: Today's mixed precision, whether a flag says it or Accelerate's configuration.

    Raises:
        StateError: The message lists all flags that differ, with both values.
    """
    if not starts:
        return
    earlier = starts[-1]
    kind = type(args).__name__
    if earlier.get("arguments", kind) != kind:
        raise StateError(
            f"the run in {where} was begun by another script ({_script_of(earlier)}), whose checkpoints do not fit "
            "this one. Resume it with that script, or choose another --output_dir."
        )
    before = flat(earlier["settings"])
    now = flat(settings_of(args))
    if "precision" in earlier and precision is not None:
        before["mixed_precision"] = earlier["precision"]
        now["mixed_precision"] = precision
    differing = []
    for name, (old, new) in changes(before, now, "must be equal").items():
        differing.append(f"--{name} was {old!r}, now {new!r}")
    processes = earlier.get("num_processes", num_processes)
    if num_processes is not None and processes != num_processes:
        differing.append(f"the number of processes was {processes}, now {num_processes}")
    if differing:
        raise StateError(
            f"the run in {where} had other settings: {'; '.join(differing)}. Resume with its own flags, or "
            "choose another --output_dir."
        )


def _script_of(start: JSON) -> str:
    """The script of a start, as its command named it."""
    command = start.get("command") or []
    return script_name([str(word) for word in command])


def check_same_data(starts: Sequence[JSON], identity: JSON) -> None:
    """Refuse to resume on other data than the run began with; a run that noted nothing passes.

    Args:
        starts: The starts that led to the checkpoint.
        identity: Of today's data, as `data_identity` makes it.

    Raises:
        StateError: The message says in what they differ.
    """
    noted = [start["identity"] for start in starts if start.get("identity")]
    if not noted or not identity or noted[-1] == identity:
        return
    before = noted[-1]
    if before["images"] != identity["images"]:
        changed = f"it had {before['images']} images, now {identity['images']}"
    else:
        changed = f"{identity['images']} images as before, but other names, captions or classes"
    raise StateError(
        f"the training data changed since the run began: {changed}. Put the data back, or begin a new run in another "
        "--output_dir."
    )


def applied_line(starts: Sequence[JSON], args: Any) -> str | None:
    """One line on the flags that take another value from now on, or None."""
    if not starts:
        return None
    before = flat(starts[-1]["settings"])
    now = flat(settings_of(args))
    found = changes(before, now, "applied") | changes(before, now, "extendable")
    words = []
    for name, (old, new) in found.items():
        if name not in OF_THE_START:
            words.append(f"no --{name} (was {old})" if new is None else f"--{name} {new} (was {old})")
    return f"resumed with {', '.join(words)}" if words else None


def note_start(file: Path, before: Sequence[JSON], start: JSON, data_report: JSON | None = None) -> None:
    """Add a start to `run.json`; earlier ones are never changed.

    The settings of the start that began from nothing also stand at the top, where older versions looked for them.

    Args:
        file: The file.
        before: Earlier starts.
        start: This one.
        data_report: What today's data holds, and what of it is left out.
    """
    starts = [*before, start]
    first = [entry for entry in starts if entry["step"] == 0] or starts
    values = {**first[-1]["settings"], "starts": starts}
    if data_report is not None:
        values[DATA_KEY] = data_report
    write_text_atomically(file, json.dumps(values, indent=2) + "\n")


def describe_start(
    args: Any,
    *,
    step: int,
    steps: int,
    num_processes: int,
    identity: JSON,
    model: JSON,
    cpu_threads: int,
    precision: str,
) -> JSON:
    """The entry of one start.

    Args:
        args: Its arguments.
        step: Optimizer steps done before it.
        steps: Optimizer steps of the whole run.
        num_processes: Number of processes.
        identity: Of the data.
        model: As `describe_model`.
        cpu_threads: Threads that torch computes with.
        precision: Mixed precision.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "steps": steps,
        "num_processes": num_processes,
        "cpu_threads": cpu_threads,
        "precision": precision,
        "command": typed_command(sys.argv),
        "arguments": type(args).__name__,
        "versions": versions(),
        "identity": identity,
        "model": model,
        "settings": settings_of(args),
    }


def describe_model(model: nn.Module) -> JSON:
    """Class and number of parameters of the model that trains, so that a report does not set it beside another."""
    # `fully_shard` puts a subclass of its own in front of the model's class.
    model_class = next(cls for cls in type(model).__mro__ if not hasattr(cls, "_get_fsdp_state"))
    return {"class": model_class.__name__, "parameters": sum(value.numel() for value in model.parameters())}


def versions() -> dict[str, str]:
    """Name -> version of Python and of the packages that training depends on, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
