"""Images that are used, with what belongs to each, as a data set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .listing import NO_IMAGE, VIDEO, VIDEO_ENDINGS, File, Listing
from .reading import Reading
from .splits import top_folder


if TYPE_CHECKING:
    from datasets import Dataset

FILE_NAME = "file_name"
OUTSIDE_SPLITS = "outside of the splits"


@dataclass(frozen=True)
class Item:
    """An image that is used.

    Attributes:
        file: The image.
        value: Its caption or label, as it was read.
        where: Where that stands.
    """

    file: File
    value: Any
    where: str


@dataclass(frozen=True)
class Columns:
    """The two columns that a user asks for.

    Attributes:
        image: Value of --image_column.
        value: Value of the other flag.
        flag: Its name: caption_column or label_column.
        hint: How such data is written, for messages.
    """

    image: str
    value: str
    flag: str
    hint: str

    @property
    def file_key(self) -> str:
        """Column of a metadata file that names the images, as in `datasets`."""
        return FILE_NAME if self.image == "image" else f"{self.image}_{FILE_NAME}"

    def missing(self, flag: str, there: Iterable[str]) -> DataError:
        """The error for a column that is not there."""
        name = self.image if flag == "image_column" else self.value
        return DataError(f"--{flag} {name!r} is not a column of the data; it has {list(there)}. {self.hint}")


def by_split(items: Iterable[Item], splits: Collection[str], reading: Reading) -> dict[str, list[Item]]:
    """Items by the split in whose folder their image lies; those outside of all splits are counted.

    Args:
        items: Of a folder that has splits.
        splits: As `find_splits` gives them.
        reading: Counts.
    """
    groups: dict[str, list[Item]] = {}
    outside = []
    for item in items:
        top = top_folder(item.file)
        if top in splits:
            groups.setdefault(top, []).append(item)
        else:
            outside.append(item.file.name)
    reading.leave_out(OUTSIDE_SPLITS, outside)
    return groups


def image_table(
    files: Sequence[File], values: Sequence[Any], *, image_column: str, column: str, feature: Any = None
) -> Dataset:
    """A data set of image files, what belongs to them, and a column `stamp` of the files' sizes and times.

    Args:
        files: The images.
        values: One of each image.
        image_column: Name of the column of images.
        column: Name of the column of values.
        feature: Type of the values in `datasets`; None takes that of the values.
    """
    import datasets

    if feature is None:
        feature = datasets.Dataset.from_dict({column: list(values)}).features[column]
    features = {
        image_column: datasets.Image(),
        column: feature,
        "stamp": datasets.Value("string"),
    }
    columns = {
        image_column: [file.path for file in files],
        column: list(values),
        "stamp": [file.stamp for file in files],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def leave_out_unused(listing: Listing, used: Iterable[File], reading: Reading, unlisted: str) -> None:
    """Count the files of a folder that are not used.

    Args:
        listing: Of the folder.
        used: Images, and the texts that are captions.
        reading: Counts.
        unlisted: Why images are not used.
    """
    paths = {file.path for file in used}
    reading.leave_out(unlisted, [file.name for file in listing.images if file.path not in paths])
    rest = [*listing.captions, *listing.others, *listing.tables]
    names = sorted(file.name for file in rest if file.path not in paths)
    reading.leave_out(VIDEO, [name for name in names if name.lower().endswith(VIDEO_ENDINGS)])
    reading.leave_out(NO_IMAGE, [name for name in names if not name.lower().endswith(VIDEO_ENDINGS)])
    for reason, skipped in listing.skipped.items():
        # A metadata file may name a hidden file.
        reading.leave_out(reason, [name for name in skipped if f"{listing.root}/{name}" not in paths])
    reading.notes += listing.notes
