"""Read metadata.jsonl, metadata.csv and metadata.parquet: one row per image, and where it stands."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DataError
from .listing import File


@dataclass(frozen=True)
class Row:
    """One row of a metadata file.

    Attributes:
        values: By column.
        file: The metadata file.
        where: Its name and the line.
    """

    values: dict[str, Any]
    file: File
    where: str


def read_metadata(file: File) -> list[Row]:
    """All rows of a metadata file, in its order; blank lines are no rows.

    Raises:
        DataError: A line cannot be read; the message names file and line.
    """
    read = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[file.ending]
    return list(read(file))


def read_text(path: str, name: str) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark; lines end in a line feed.

    Args:
        path: Of the file.
        name: For the message.

    Raises:
        DataError: It is not UTF-8, or cannot be read; the message names file and line.
    """
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{name} line {line} is not UTF-8 ({error.reason}): save the file as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _jsonl(file: File) -> Iterator[Row]:
    lines = read_text(file.path, file.name).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file.name} line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise DataError(f'{where} is {values!r}: every line must be {{"file_name": ..., "text": ...}}.')
        yield Row(values, file, where)


def _csv(file: File) -> Iterator[Row]:
    text = read_text(file.path, file.name)
    reader = csv.DictReader(
        io.StringIO(text),
        delimiter=_delimiter(text),
        skipinitialspace=True,
        strict=True,
    )
    try:
        _check_header(file, reader.fieldnames or ())
        for values in reader:
            where = f"{file.name} line {reader.line_num}"
            if None in values or None in values.values():
                raise DataError(
                    f"{where} has not as many fields as the header {reader.fieldnames}: put text with commas in "
                    "double quotes."
                )
            yield Row(dict(values), file, where)
    except csv.Error as error:
        raise DataError(f"{file.name} line {reader.line_num} is not CSV: {error}.") from error


def _delimiter(text: str) -> str:
    """What separates the columns of a header: a comma, or what spreadsheets write elsewhere."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _check_header(file: File, names: Sequence[str]) -> None:
    """Refuse two columns of one name, of which only the last would be read."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{file.name} has several columns called {repeated[0]!r}: rename or remove all but one.")


def _parquet(file: File) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file.path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{file.name} cannot be read: {error}.") from error
    for number, values in enumerate(rows):
        yield Row(values, file, f"{file.name} row {number}")
