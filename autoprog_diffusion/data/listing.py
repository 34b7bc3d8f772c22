"""List the files of a folder: images, captions, tables, and what is none of them. Names never choose, endings do."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image

from autoprog_diffusion.files import RUN_FILE

from .errors import DataError


METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_ENDINGS = (".txt", ".caption")  # those of sd-scripts
# Formats that Pillow knows by name but cannot decode without another program.
UNDECODABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
SYSTEM_FOLDERS = {
    "__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
HIDDEN = "hidden"
SYSTEM = "of the operating system"
IN_HIDDEN = "in hidden folders"
IN_SYSTEM = "in folders of the operating system"
IN_OUTPUT = "in the output folder of a run"
NO_IMAGE = "not an image"
VIDEO = "a video (of animations, .webp, .gif and .png are read)"
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
EMPTY = "empty (0 bytes)"
BROKEN_LINK = "a broken link"


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        path: Absolute; links in it are kept.
        name: Relative to the folder that was listed, with "/" between its parts.
        stamp: Size and time of the content; as a column, it lets the data's fingerprint follow the content.
    """

    path: str
    name: str
    stamp: str

    @cached_property
    def stem(self) -> str:
        """The name without its ending, its letters `composed`: a text and its image may be from different systems."""
        return composed(os.path.splitext(self.name)[0])

    @cached_property
    def empty(self) -> bool:
        """Whether it has no content."""
        return self.stamp.startswith("0 ")

    @cached_property
    def ending(self) -> str:
        """Ending in lower case, with its dot; empty where there is none."""
        return os.path.splitext(self.name)[1].lower()


@dataclass
class Listing:
    """Files of a folder and of all folders in it, in the order of their names.

    Attributes:
        root: The folder, absolute.
        images: Files whose ending Pillow can decode here.
        captions: Text files, of which some may be captions.
        metadata: `metadata.jsonl`, `.csv` or `.parquet`.
        tables: Other parquet files.
        others: Everything else.
        folders: Relative names of the folders that are not hidden.
        skipped: Names of the files that are never read, by reason.
        contents: Content of an image, by device and number, -> how many names it has in the folder.
        notes: What was skipped as a whole, and what is there twice.
    """

    root: str
    images: list[File] = field(default_factory=list)
    captions: list[File] = field(default_factory=list)
    metadata: list[File] = field(default_factory=list)
    tables: list[File] = field(default_factory=list)
    others: list[File] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    contents: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def empty(self) -> bool:
        """Whether there is no file at all."""
        kinds = (self.images, self.captions, self.metadata, self.tables, self.others, self.skipped)
        return not any(kinds)

    def skip(self, reason: str, name: str) -> None:
        """Note a file that is never read."""
        self.skipped.setdefault(reason, []).append(printable(name))


@dataclass(frozen=True)
class _Folder:
    """A folder to list: its path, its relative name, why its files are skipped, and the folders that hold it."""

    path: str
    name: str
    reason: str | None
    above: frozenset[tuple[int, int]]


def list_files(folder: str | os.PathLike[str], *, deep: bool = True) -> Listing:
    """All files of a folder; links are followed, and nothing is decoded.

    Args:
        folder: To list.
        deep: List the folders in it as well; otherwise their files are skipped, and counted.

    Raises:
        DataError: A folder cannot be read.
    """
    listing = Listing(os.path.abspath(folder))
    endings = image_endings()
    top = _Folder(
        listing.root,
        name="",
        reason=None,
        above=frozenset(),
    )
    waiting = [top]
    while waiting:
        current = waiting.pop()
        mark = _mark(current.path)
        if mark in current.above:
            if current.reason is None:
                listing.folders.remove(printable(current.name))  # it is no class
            listing.skip("a link to a folder above it", current.name)
            continue
        above = current.above | {mark}
        entries = list(_entries(current.path))
        skipped = current.reason or _reason_of_output(current, entries, listing)
        for entry in entries:
            name = f"{current.name}/{entry.name}" if current.name else entry.name
            if _is_folder(entry):
                reason = skipped or _reason_of_folder(entry.name, name, listing)
                if reason is None and not deep:
                    reason = "in a sub-folder"
                waiting.append(_Folder(entry.path, name, reason, above))
            else:
                _add(listing, entry, name, reason=skipped, endings=endings)
    for files in (listing.images, listing.captions, listing.metadata, listing.tables, listing.others):
        files.sort(key=lambda file: file.name.split("/"))
    for names in (listing.folders, *listing.skipped.values()):
        names.sort()
    twice = sum(count - 1 for count in listing.contents.values())
    if twice:
        listing.notes.append(f"{twice} of the images are links to others of the images: every name counts")
    return listing


def image_endings() -> set[str]:
    """Endings, such as ".png", of the formats that Pillow decodes here; imported plug-ins of Pillow add theirs."""
    known = Image.registered_extensions()
    return {ending for ending, kind in known.items() if kind in Image.OPEN and kind not in UNDECODABLE}


def litter(name: str, system: set[str]) -> str | None:
    """Why a file or folder of this name is skipped; None for one that is read."""
    if name.startswith("."):
        return HIDDEN
    return SYSTEM if name.lower() in system else None


def composed(name: str) -> str:
    """A name in the Unicode form in which an accented letter is one character; a Mac writes the other."""
    return unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """A name that any terminal and JSON can show: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def stamp_of(status: os.stat_result) -> str:
    """Size and time of a file's content."""
    return f"{status.st_size} {status.st_mtime_ns}"


def _entries(path: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"the folder {printable(path)} cannot be read: {error}.") from error


def _mark(path: str) -> tuple[int, int]:
    """What makes a folder the same under another name."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"the folder {printable(path)} cannot be read: {error}.") from error
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _reason_of_folder(base: str, name: str, listing: Listing) -> str | None:
    reason = litter(base, SYSTEM_FOLDERS)
    if reason is None:
        listing.folders.append(printable(name))
        return None
    listing.notes.append(f"the folder {printable(name)} is {reason} and not read")
    return IN_HIDDEN if reason == HIDDEN else IN_SYSTEM


def _reason_of_output(folder: _Folder, entries: Iterable[os.DirEntry[str]], listing: Listing) -> str | None:
    """Why the files of a folder that a run of ours wrote are skipped, where it lies in the data."""
    if not folder.name or all(entry.name != RUN_FILE for entry in entries):
        return None
    listing.folders.remove(printable(folder.name))
    listing.notes.append(f"the folder {printable(folder.name)} is the output of a run and not read")
    return IN_OUTPUT


def _add(listing: Listing, entry: os.DirEntry[str], name: str, *, reason: str | None, endings: set[str]) -> None:
    """Put one file where it belongs."""
    reason = reason or litter(entry.name, SYSTEM_FILES)
    if reason is not None:
        listing.skip(reason, name)
        return
    try:
        status = entry.stat()
    except OSError:
        listing.skip(BROKEN_LINK, name)
        return
    if not stat.S_ISREG(status.st_mode):
        listing.skip("not a regular file", name)
        return
    if printable(name) != name:
        listing.skip("named in bytes that are not UTF-8", name)
        return
    file = File(entry.path, name, stamp_of(status))
    files = _kind(listing, entry.name.lower(), file.ending, endings)
    if files is listing.images and not status.st_size:
        listing.skip(EMPTY, name)
        return
    files.append(file)
    if files is listing.images:
        listing.contents[status.st_dev, status.st_ino] += 1


def _kind(listing: Listing, name: str, ending: str, endings: set[str]) -> list[File]:
    """The list of a file, by its name and ending in lower case."""
    if name in METADATA:
        return listing.metadata
    if ending in CAPTION_ENDINGS:
        return listing.captions
    if ending == ".parquet":
        return listing.tables
    return listing.images if ending in endings else listing.others
