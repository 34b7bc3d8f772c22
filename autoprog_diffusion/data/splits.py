"""Splits of a folder: sub-folders named exactly train, validation, val or test, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import DataError
from .listing import File, Listing
from .reading import Reading


# The only split of data that comes without splits.
WHOLE = "all"
TRAIN = "train"
HELD_OUT = ("validation", "val", "test")
SPLITS = (TRAIN, *HELD_OUT)
# Names that people give to splits; only those above choose.
ALIKE = {*SPLITS, "training", "valid", "testing", "dev", "eval", "evaluation"}


def find_splits(listing: Listing, *, classes: bool) -> tuple[str, ...]:
    """The sub-folders that are splits; none where sub-folders of these names are like those beside them.

    Args:
        listing: Of the folder.
        classes: Whether sub-folders are classes, and a split has one folder per class.

    Raises:
        DataError: `train` lies beside folders that are no splits, so that it may be either.
    """
    inside = {top_folder(file) for file in listing.images}
    loose = "" in inside
    inside.discard("")
    named = tuple(name for name in SPLITS if name in inside)
    others = sorted(inside.difference(named))
    if TRAIN in named and others:
        if classes and _holds_images(listing, TRAIN):
            # It holds images as the other classes do: a class of trains.
            return ()
        raise DataError(
            f"{listing.root} holds a folder train, which is a split, and beside it {others[:5]}, which are none: move "
            "them out, or rename train if it is data as they are."
        )
    if TRAIN not in named and (others or loose):
        return ()
    return named


def missing_split(source: str, splits: Iterable[str], wanted: Iterable[str]) -> DataError:
    """The error for data whose splits are not those that are wanted."""
    return DataError(f"{source} has the splits {list(splits)}, none of {list(wanted)}: rename the one that is meant.")


def _holds_images(listing: Listing, folder: str) -> bool:
    """Whether images lie in a folder itself, and not only in folders in it."""
    for file in listing.images:
        parent, _, _ = file.name.rpartition("/")
        if parent == folder:
            return True
    return False


def top_folder(file: File) -> str:
    """The outermost folder of a file below the folder that was listed; empty for a file that lies in it itself."""
    top, slash, _ = file.name.partition("/")
    return top if slash else ""


def is_like_split(name: str) -> bool:
    """Whether people may mean a split by the name of a folder, in any case."""
    return name.lower() in ALIKE


def note_lookalikes(
    files: Iterable[File],
    splits: Iterable[str],
    reading: Reading,
) -> None:
    """Note folders that are called as splits are, and are none: their images are used like any other.

    Args:
        files: Those that are used.
        splits: As `find_splits` gives them.
        reading: Gets the note.
    """
    kept = set(splits)
    found = set()
    for file in files:
        folders = file.name.split("/")[:-1]
        for depth, name in enumerate(folders):
            is_split = depth == 0 and name in kept
            if is_like_split(name) and not is_split:
                path = folders[: depth + 1]
                found.add("/".join(path))
    if found:
        reading.notes.append(
            f"the folders {sorted(found)[:3]} are no splits, and their images are used: splits are folders called "
            "train, validation, val or test in the data folder itself"
        )


def note_tables(
    groups: dict[str, list[File]],
    reading: Reading,
) -> None:
    """Note parquet files that are called as splits are, and are none; arguments as `note_lookalikes` takes them."""
    found = []
    for file in groups.get(WHOLE, ()):
        base = file.name.split("/")[-1]
        words = re.split(r"[^a-zA-Z]", base)
        if is_like_split(words[0]):
            found.append(file.name)
    if found:
        reading.notes.append(
            f"all parquet files are read, also {found[:3]}: files of splits are called train-*, validation-*, val-* "
            "and test-*"
        )


def split_of_table(file: File) -> str:
    """Split of a parquet file: `train-00000-of-00002.parquet`, `train.parquet`, or any file in a folder `train`."""
    *folders, base = file.name.split("/")
    start = base.split("-")[0].removesuffix(".parquet")
    if start in SPLITS:
        return start
    if folders and folders[-1] in SPLITS:
        return folders[-1]
    return WHOLE


def group_tables(root: str, files: Iterable[File]) -> dict[str, list[File]]:
    """Parquet files by split.

    Args:
        root: The folder, for the message.
        files: In it.

    Raises:
        DataError: Some files are of a split, and some of none.
    """
    groups: dict[str, list[File]] = {}
    for file in files:
        groups.setdefault(split_of_table(file), []).append(file)
    if WHOLE in groups and len(groups) > 1:
        names = [file.name for file in groups[WHOLE]]
        splits = sorted(set(groups) - {WHOLE})
        raise DataError(
            f"{root} holds parquet files of the splits {splits}, and beside them {names[:5]}, which are of none: move "
            "them out, or name them as the others, such as train-0.parquet."
        )
    return groups
