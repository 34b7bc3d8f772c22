"""Find images that cannot be decoded before anything trains, and leave them out where that is asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

from tqdm.auto import tqdm

from .colours import to_rgb
from .decode import CURE, file_of, open_image, quiet, reason, undecoded
from .errors import DataError


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

logger = logging.getLogger(__name__)
# What `--corrupt` may say of images that cannot be decoded.
Corrupt = Literal["refuse", "skip"]
MOST_THREADS = 8
# Rows that are handed to the threads at a time.
_PORTION = 1024


def usable_images(
    data: Dataset, corrupt: Corrupt, accelerator: Accelerator | None = None
) -> tuple[Dataset, dict[int, str]]:
    """The data without the images that cannot be decoded, and why they are left out.

    Args:
        data: Column `image`.
        corrupt: `skip` decodes every image once and leaves out what cannot be; `refuse` looks at none, so that an
            error comes from the first one that is read.
        accelerator: Its processes share the work.

    Returns:
        The data, and row -> reason of those that are not in it any more.

    Raises:
        DataError: None can be decoded.
    """
    if corrupt == "refuse":
        return data, {}
    damaged = find_damaged(data, accelerator)
    rows = sound_rows(data, damaged, corrupt)
    if damaged:
        data = data.select(rows)
    return data, damaged


def sound_rows(data: Dataset, damaged: dict[int, str], corrupt: Corrupt) -> list[int]:
    """Rows of the images that are not damaged; the log names the others.

    Args:
        data: Columns `image`, and perhaps `label`.
        damaged: Row -> reason of those that cannot be decoded.
        corrupt: Whether they may be left out.

    Raises:
        DataError: They may not, or nothing is left of the data or of a class.
    """
    rows = [row for row in range(len(data)) if row not in damaged]
    if not damaged:
        return rows
    message = cannot_be_decoded(data, damaged)
    if corrupt == "refuse":
        raise DataError(f"{message} {CURE}")
    if not rows:
        raise DataError(message)
    if "label" in data.column_names:
        labels = data["label"][:]
        lost = set(labels) - {labels[row] for row in rows}
        if lost:
            raise DataError(f"{message} Nothing is left of the classes with the labels {sorted(lost)[:5]}.")
    logger.warning("%s They are left out.", message)
    return rows


def find_damaged(data: Dataset, accelerator: Accelerator | None = None) -> dict[int, str]:
    """Row -> reason of every image that cannot be decoded, in the order of the rows; the same on all processes."""
    first = 0
    step = 1
    if accelerator is not None:
        first = accelerator.process_index
        step = accelerator.num_processes
    found = _look(undecoded(data), range(first, len(data), step))
    if step > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return dict(sorted(found))


def cannot_be_decoded(data: Dataset, damaged: dict[int, str], most: int = 5) -> str:
    """A sentence that names the images: their number, and row, file and reason of the first `most`."""
    files = undecoded(data)
    names = []
    for row in list(damaged)[:most]:
        file = file_of(files, row)
        names.append(f"row {row}{file}: {damaged[row]}")
    if len(damaged) > most:
        names.append(f"and {len(damaged) - most} more")
    text = "; ".join(names)
    return f"{len(damaged)} of {len(data)} images cannot be decoded: {text}."


def _look(data: Dataset, rows: Sequence[int]) -> list[tuple[int, str]]:
    """Rows and reasons of those that cannot be decoded; Pillow decodes in several threads at a time."""
    cores = os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    threads = max(1, cores // processes)
    threads = min(MOST_THREADS, threads)

    def check(row: int) -> str | None:
        try:
            image = open_image(data, row)
            # An eighth of a JPEG's size shows all damage, in less time.
            image.draft("RGB", (1, 1))
            to_rgb(image)
        except Exception as error:  # as in `decode.decoding`
            return reason(error)
        return None

    found: list[tuple[int, str]] = []
    with (
        quiet(),
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(rows), desc="looking for damaged images", leave=False, delay=5) as bar,
    ):
        for start in range(0, len(rows), _PORTION):
            portion = rows[start : start + _PORTION]
            for row, why in zip(portion, pool.map(check, portion)):
                if why is not None:
                    found.append((row, why))
            bar.update(len(portion))
    return found
