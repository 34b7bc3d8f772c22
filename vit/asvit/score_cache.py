"""Scores of the networks a training-free search has evaluated: on disk after each, so that none is paid for twice.

The searches here are deterministic functions of their settings and of the scores, so this file is all their state: a
search that goes on replays its steps with the scores it finds here, draws the same random numbers, and ends bit for
bit where it would have ended without the interruption.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth.errors import StateError


CACHE_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """A network and its scores.

    Attributes:
        genotype: As a string.
        ntk: Condition number of the neural tangent kernel; lower is better.
        length: Length distortion; higher is better.
        degenerate: A score is missing or meaningless (singular kernel, constant features): it must never win.
    """

    genotype: str
    ntk: float
    length: float
    degenerate: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ntk) and math.isfinite(self.length)):
            object.__setattr__(self, "degenerate", True)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, infinities and nans as text."""
        return {key: _number_out(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """The evaluation that `to_dict` wrote."""
        return cls(
            genotype=values["genotype"],
            ntk=float(values["ntk"]),
            length=float(values["length"]),
            degenerate=bool(values["degenerate"]),
        )


class ScoreCache:
    """Evaluated networks by genotype, kept in a file.

    Args:
        evaluate: Genotype -> its scores; always the same for the same genotype.
        path: JSON file, written after every evaluation; None keeps everything in memory.
        settings: What the scores depend on (image size, seed, ...); a file made under others is refused.
        resume: Whether a file that exists is continued.

    Raises:
        StateError: The file exists and is not to be continued, is damaged, or belongs to other settings.
    """

    def __init__(
        self,
        evaluate: Callable[[str], Evaluation],
        path: Path | None = None,
        settings: dict[str, Any] | None = None,
        *,
        resume: bool = True,
    ) -> None:
        self._evaluate = evaluate
        self._path = path
        # As JSON gives them back, so that lists and tuples compare equal.
        self._settings = json.loads(json.dumps(settings or {}))
        self._known: dict[str, Evaluation] = {}
        self.fresh = 0  # evaluations made by this process
        if path is not None and path.exists():
            if not resume:
                raise StateError(f"{path} holds an earlier search: continue it with --resume, or name another folder.")
            self._load(path)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, genotype: str) -> bool:
        return genotype in self._known

    def __getitem__(self, genotype: str) -> Evaluation:
        """The scores of a network, evaluated now if it never was."""
        if genotype not in self._known:
            self._known[genotype] = self._evaluate(genotype)
            self.fresh += 1
            self._save()
        return self._known[genotype]

    @property
    def evaluations(self) -> list[Evaluation]:
        """All, in the order they were made."""
        return list(self._known.values())

    def _save(self) -> None:
        """Write the file: JSON with one network on a line, so that a diff shows what came to it."""
        if self._path is None:
            return
        rows = []
        for item in self._known.values():
            rows.append("  " + json.dumps(item.to_dict()))
        listed = ",\n".join(rows)
        head = f'"version": {CACHE_VERSION},\n"settings": {json.dumps(self._settings)}'
        write_text_atomically(self._path, f'{{{head},\n"evaluations": [\n{listed}\n]}}\n')

    def _load(self, path: Path) -> None:
        """Take over a file's evaluations.

        Raises:
            StateError: It is damaged, of another version, or made under other settings.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values["version"]
            settings = values["settings"]
            known = [Evaluation.from_dict(item) for item in values["evaluations"]]
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{path} is not a file of evaluated networks ({error!r}): name another folder."
            ) from error
        if version != CACHE_VERSION:
            raise StateError(f"{path} has version {version!r}, this library reads {CACHE_VERSION}.")
        wrong = []
        for name in {**settings, **self._settings}:
            before = settings.get(name)
            now = self._settings.get(name)
            if before != now:
                wrong.append(f"{name} was {before!r}, now {now!r}")
        if wrong:
            raise StateError(f"{path} was made under other settings ({'; '.join(wrong)}): use them or another folder.")
        self._known = {item.genotype: item for item in known}


def _number_out(value: Any) -> Any:
    """A value as JSON may hold it: infinities and nans, which JSON has not, as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
