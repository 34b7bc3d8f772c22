"""A short mark of a data set, by which a resumed run notices that the data changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset


def data_identity(data: Dataset) -> dict[str, Any]:
    """Number of images, and a hash of all that is not a pixel: names of files, captions, classes, in their order.

    No image is read, so that it costs little; a picture that was replaced under its old name is not noticed.
    """
    from datasets import Image

    digest = hashlib.sha256()
    features = data.features
    # A stamp has the time of a file, which a copy of the data does not keep.
    for name in sorted(set(features) - {"stamp"}):
        if isinstance(features[name], Image):
            words = image_names(data, name)
        else:
            words = map(repr, data.select_columns(name)[:][name])
        classes = map(repr, getattr(features[name], "names", None) or ())
        digest.update("\n".join([name, *classes, *words]).encode("utf-8", "surrogatepass"))
    return {"images": len(data), "digest": digest.hexdigest()[:16]}


def image_names(data: Dataset, column: str) -> Iterable[str]:
    """Names of the files of an image column, without their folders; empty where images are in the table itself."""
    from datasets import Image

    paths = data.select_columns(column).cast_column(column, Image(decode=False)).flatten()
    # `flatten` may leave a format of the column that it replaced.
    for path in paths.with_format(None).select_columns(f"{column}.path")[:][f"{column}.path"]:
        yield PurePath(path).name if path else ""
