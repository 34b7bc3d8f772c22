"""Everything that was found in the sources of a run: for a table at its start, and for run.json."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from .reading import Reading


logger = logging.getLogger(__name__)
DAMAGED = "damaged"


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
