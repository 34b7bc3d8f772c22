"""Which files of a run's folder a report reads, and the errors of those that cannot be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoprog_diffusion.files import GROWTH_FILE, METRICS_FILE, RUN_FILE
from autoprog_diffusion.growth.values import JSON

from .errors import ReportError


CHECKPOINTS = "checkpoints"
_CHECKPOINT = re.compile(r"checkpoint-\d+$")
_MARKER = "complete.json"  # the last file that a checkpoint gets


def check_is_run(folder: Path) -> None:
    """Refuse a folder that no run has written.

    Raises:
        ReportError: The message says what the folder is instead, and which one may be meant.
    """
    if not folder.exists():
        raise ReportError(f"{folder} does not exist: give the --output_dir of a run.")
    if not folder.is_dir():
        raise ReportError(f"{folder} is a file: give the --output_dir of a run, which is a folder.")
    if _CHECKPOINT.match(folder.name) and folder.parent.name == CHECKPOINTS:
        raise ReportError(f"{folder} is a checkpoint: give the folder of its run, {folder.parents[1]}.")
    if (folder / RUN_FILE).is_file():
        return
    inside = sorted(path.parent.name for path in folder.glob(f"*/{RUN_FILE}"))
    hint = f" Folders in it hold runs: {inside[:5]}." if inside else ""
    raise ReportError(f"{folder} holds no run, since it has no {RUN_FILE}: give the --output_dir of a run.{hint}")


def read_json(path: Path) -> JSON:
    """The object in a JSON file.

    Raises:
        ReportError: It cannot be read, or holds something else.
    """
    with _readable(path):
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__} instead of an object")
    return values


def read_optional(path: Path) -> JSON | None:
    """As `read_json`, but None where there is no such file."""
    return read_json(path) if path.exists() else None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into a `ReportError` that names it."""
    try:
        yield
    # A number that is too long, and brackets that are too deep, have errors of their own.
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ReportError(
            f"{path} cannot be read: {error}. Put the file back as the run wrote it, or leave this run out."
        ) from error


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the values of a file into a `ReportError` that names it."""
    try:
        yield
    except ReportError:
        raise
    except KeyError as error:
        raise ReportError(f"{path} is damaged: it lacks {error}. Put it back, or leave this run out.") from error
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ReportError(f"{path} is damaged: {error}. Put it back, or leave this run out.") from error


def measured_folder(folder: Path) -> Path | None:
    """The folder with the newest measurements: the run's own once it has ended, else its newest complete checkpoint.

    Returns:
        None where nothing was measured yet.

    Raises:
        ReportError: A `metrics.json` cannot be read.
    """
    found: list[tuple[str, int, Path]] = []
    for place in (*complete_checkpoints(folder), folder):
        values = read_optional(place / METRICS_FILE)
        if values is not None:
            # A checkpoint of the last step is as new as the run's own to a fraction of a second: the later wins.
            found.append((str(values.get("written")), len(found), place))
    if found:
        return max(found)[-1]
    # A run of an older version: no metrics of single steps, but a summary of its stages.
    return folder if (folder / GROWTH_FILE).is_file() else None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run whose files are all there, with the sizes they were written with."""
    found = sorted((folder / CHECKPOINTS).glob("checkpoint-*"))
    return [path for path in found if _CHECKPOINT.match(path.name) and _is_complete(path)]


def _is_complete(checkpoint: Path) -> bool:
    try:
        marker = json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
