"""Count what one source of data holds, and what of it is left out and why."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


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
