"""Damage of everything that is read, for a bounded time: it must end in an error of ours, or in what is reported.

    python tests/fuzz.py --minutes 2 --seed 0
    python tests/fuzz.py --seed 0 --case 17

Images, captions, tables, plans, settings, checkpoints, model folders and stage embeddings are damaged in turn: files
are cut, bits flipped, values replaced. A foreign error, a hang, or damage that is used without a word is a finding. It
is printed with the words that repeat it, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


TESTS = Path(__file__).resolve().parent
sys.path.insert(0, str(TESTS))

from fuzzing import checkpoints, images, models, settings, sources  # noqa: E402

from autoprog_diffusion.growth.errors import GrowthError  # noqa: E402


TARGETS: dict[str, Any] = {
    "images": images.Images,
    "captions": sources.Captions,
    "tables": sources.Tables,
    "plans": settings.Plans,
    "settings": settings.Settings,
    "checkpoints": checkpoints.Checkpoints,
    "old checkpoints": checkpoints.OldCheckpoints,
    "models": models.Models,
    "embeddings": models.Embeddings,
    "pipelines": models.Pipelines,
}
# Seconds after which a case hangs.
LONGEST = 30


def target_of(number: int) -> str:
    """Name of what a case damages."""
    return list(TARGETS)[number % len(TARGETS)]


class HangError(BaseException):
    """A case takes too long; no library may swallow it."""


class Fuzzer:
    """Cases by number: every target in turn, each case random by seed and number alone.

    Args:
        folder: For the files.
        seed: Of everything random.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self._folder = folder
        self._seed = seed
        self._targets: dict[str, Any] = {}

    def run(self, number: int) -> None:
        """Run one case, and print what it finds."""
        name = target_of(number)
        if name not in self._targets:
            place = self._folder / name.replace(" ", "_")
            place.mkdir()
            self._targets[name] = TARGETS[name](place)
        chance = random.Random(f"{self._seed} {number}")
        try:
            with at_most(LONGEST):
                outcome = self._targets[name].case(chance)
        except GrowthError:
            outcome = "refused"
        except (Exception, HangError) as error:  # a finding is whatever is not ours
            outcome = "FOUND"
            self._report(name, number, error)
        self.counts[f"{name}: {outcome}"] += 1

    def _report(self, name: str, number: int, error: BaseException) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{name}: {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        self.findings.append(line)
        print(f"FOUND {line}\n  repeat: python tests/fuzz.py --seed {self._seed} --case {number}", flush=True)


@contextmanager
def silence() -> Iterator[None]:
    """Hold back what C libraries and progress bars write: thousands of damaged files are on purpose."""
    sys.stderr.flush()
    before = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise `HangError` where the body takes longer."""

    def stop(*_: object) -> None:
        raise HangError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(seconds: float, seed: int, case: int | None = None, only: str | None = None) -> Fuzzer:
    """Run cases until the time is up, at least one of every target, or of the one that is named; or one case."""
    end = time.monotonic() + seconds
    number = 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuzzer = Fuzzer(Path(folder), seed)
        if case is not None:
            fuzzer.run(case)
            return fuzzer
        while number < len(TARGETS) or time.monotonic() < end:
            if only in (None, target_of(number)):
                fuzzer.run(number)
            number += 1
    return fuzzer


def main(argv: list[str] | None = None) -> int:
    """Run cases until the time is up; the exit status is 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0, help="no new case begins after so long")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument("--only", choices=TARGETS, help="damage nothing else")
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    with silence():
        fuzzer = fuzz(60 * args.minutes, args.seed, args.case, args.only)
    for outcome, count in sorted(fuzzer.counts.items()):
        print(f"{count:6d}  {outcome}")
    print(f"{sum(fuzzer.counts.values())} cases, {len(fuzzer.findings)} findings")
    return min(len(fuzzer.findings), 1)


if __name__ == "__main__":
    sys.exit(main())
