"""Count what a data set holds, and what of it is left out: for a table at the start of a run, and for run.json."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any


logger = logging.getLogger(__name__)
DAMAGED = "damaged"
EXAMPLES = 3  # names that the table gives for each reason


@dataclass
class LeftOut:
    """Files or rows that are left out for one reason.

    Attributes:
        count: How many.
        examples: Names of the first of them.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Reading:
    """What was found in one source, and what became of it.

    Attributes:
        verb: What is done with the images that are used: "trained on".
        source: Folder, file or name of the data.
        used: Number of images that are used.
        left_out: By reason.
        notes: What a user may not expect of the images that are used.
    """

    verb: str
    source: str
    used: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def found(self) -> int:
        """Number of files or rows, used or not."""
        return self.used + self.lost

    @property
    def lost(self) -> int:
        """Number of files or rows that are left out."""
        return sum(item.count for item in self.left_out.values())

    def leave_out(self, reason: str, names: Collection[str] = (), *, count: int | None = None) -> None:
        """Count files or rows that are left out.

        Args:
            reason: Words that follow a number: "hidden".
            names: Their names.
            count: How many, where they have no names.
        """
        number = len(names) if count is None else count
        if not number:
            return
        item = self.left_out.setdefault(reason, LeftOut())
        item.count += number
        room = EXAMPLES - len(item.examples)
        examples = list(names)[:room]
        item.examples += examples

    def line(self) -> str:
        """One sentence: found, used, left out and why."""
        text = f"{self.source}: found {self.found}, {self.verb} {self.used}"
        if not self.left_out:
            return text
        reasons = ", ".join(f"{item.count} {reason}" for reason, item in self._by_count())
        return f"{text}, left out {self.lost}: {reasons}"

    def rows(self) -> list[str]:
        """The sentence, a row with examples for every reason, and the notes."""
        rows = [self.line()]
        for reason, item in self._by_count():
            if item.examples:
                names = ", ".join(item.examples)
                more = ", ..." if item.count > len(item.examples) else ""
                rows.append(f"  {item.count:>7,}  {reason}: {names}{more}")
        return rows + [f"  note: {note}" for note in self.notes]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {}
        examples = {}
        for reason, item in self.left_out.items():
            counts[reason] = item.count
            if item.examples:
                examples[reason] = item.examples
        return {
            "source": self.source,
            "verb": self.verb,
            "found": self.found,
            "used": self.used,
            "left_out": counts,
            "examples": examples,
            "notes": self.notes,
        }

    def _by_count(self) -> list[tuple[str, LeftOut]]:
        """Reasons, that of the most files first."""
        return sorted(self.left_out.items(), key=lambda pair: -pair[1].count)


@dataclass
class DataReport:
    """Readings of all sources of a run: training, validation, pictures of a class.

    Attributes:
        readings: In the order of the rows.
        buckets: Sides, resolution and number of images of every bucket; none where images are squares.
    """

    readings: list[Reading] = field(default_factory=list)
    buckets: list[dict[str, int]] = field(default_factory=list)

    def add(self, verb: str, source: str) -> Reading:
        """Begin the reading of one source; arguments as those of `Reading`."""
        reading = Reading(verb, source)
        self.readings.append(reading)
        return reading

    def leave_out_rows(self, reason: str, rows: Iterable[int]) -> None:
        """Count rows that are left out after all.

        Args:
            reason: Words that follow a number.
            rows: Row numbers of the data, which has the rows of all readings one after another.
        """
        if not self.readings:
            return
        ends = list(accumulate(reading.used for reading in self.readings))
        for row in rows:
            reading = self.readings[bisect_right(ends, row)]
            reading.used -= 1
            reading.leave_out(reason, count=1)

    def table(self) -> str:
        """All readings as lines of text."""
        return "\n".join(row for reading in self.readings for row in reading.rows())

    def log(self) -> None:
        """Show the table: only the main process of a run shows what is logged as information."""
        logger.info("%s", self.table())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values: dict[str, Any] = {"sources": [reading.to_dict() for reading in self.readings]}
        if self.buckets:
            values["buckets"] = self.buckets
        return values
