"""Random plans, kills, resumes and world sizes for a bounded time; everything is checked after every event.

    python tests/soak.py --minutes 5 --seed 1

Every scenario is a run of `faults/worker.py` that is killed and resumed until it ends. While the number of ranks stays
the same, the end must equal, bit for bit, that of the same run left alone; where it changes, the plan must travel.
After every event: no frozen weight moved, ranks are equal, and no checkpoint is corrupt.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent))

from faults.launching import finish, found_wrong, launch, was_killed  # noqa: E402
from faults.worker import Settings  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from autoprog_diffusion.growth import GrowthPlan  # noqa: E402
from autoprog_diffusion.growth.fixed import stage_starts  # noqa: E402
from autoprog_diffusion.training.checkpoints import checkpoint_step, newest_checkpoint  # noqa: E402


PLACES = ("step", "search", "rebuild", "checkpoint")


def random_settings(chance: random.Random) -> Settings:
    """A run of random shape."""
    return Settings(
        seed=chance.randrange(1000),
        steps=chance.choice([16, 20, 24]),
        num_stages=chance.choice([2, 3, 4]),
        order=chance.choice(["interleaved", "suffix", "prefix"]),
        search=chance.choice(["none", "zero_shot"]),
        accumulation=chance.choice([1, 2, 3]),
        ema=chance.random() < 0.5,
        stage_embedding=chance.random() < 0.7,
        every=chance.choice([2, 3, 5]),
    )


def with_death(settings: Settings, ranks: int, after: int, chance: random.Random) -> Settings:
    """The run, dying at a random point that it reaches after optimizer step number `after`."""
    starts = stage_starts(settings.num_stages, None, settings.steps)[1:]
    points = {
        "step": range(settings.steps),
        "checkpoint": range(settings.every, settings.steps + 1, settings.every),
        "rebuild": starts if ranks > 1 else (),
        "search": (2, *starts[:-1]) if settings.search != "none" else (),
    }
    place = chance.choice([place for place in PLACES if any(at > after for at in points[place])])
    at = chance.choice([at for at in points[place] if at > after])
    return replace(settings, place=place, at=at, dying_rank=chance.randrange(ranks))


def corrupt(folder: Path) -> list[str]:
    """What is wrong with the newest complete checkpoint of a run: every tensor file must load."""
    newest = newest_checkpoint(folder / "checkpoints")
    if newest is None:
        return []
    wrong = []
    for path in newest.rglob("*.safetensors"):
        try:
            load_file(path)
        except Exception as error:  # whatever it is, the file cannot be read
            wrong.append(f"{path.name} in {newest.name} is corrupt: {error}")
    return wrong


def differences(folder: Path, alone: Path, changed: bool) -> list[str]:
    """How the end of a run differs from the same run left alone."""
    ours, theirs = (json.loads((path / "decisions.json").read_text()) for path in (folder, alone))
    starts = [[stage["start"] for stage in values["plan"]["stages"]] for values in (ours, theirs)]
    GrowthPlan.from_dict(ours["plan"])  # its stages follow one another, or it raises
    wrong = [] if starts[0] == starts[1] else [f"the stages begin at {starts[0]} instead of {starts[1]}"]
    if changed:
        return wrong
    wrong += [] if ours == theirs else [f"decisions differ: {ours['decisions']} instead of {theirs['decisions']}"]
    same = (folder / "final.safetensors").read_bytes() == (alone / "final.safetensors").read_bytes()
    return wrong if same else [*wrong, "the final weights differ"]


def scenario(root: Path, number: int, chance: random.Random, counts: Counter[str]) -> list[str]:
    """One run, killed and resumed at random until it ends; what was found wrong."""
    settings = random_settings(chance)
    ranks, folder, alone = chance.choice([1, 2]), root / f"{number}", root / f"{number}-alone"
    changed = False
    print(f"scenario {number}: {asdict(settings)}, {ranks} rank(s)", flush=True)
    finish(alone, settings, ranks)
    for _ in range(chance.randrange(1, 4)):
        newest = newest_checkpoint(folder / "checkpoints")
        done = checkpoint_step(newest) if newest else 0
        if done >= settings.steps - 1:
            break
        dying = with_death(settings, ranks, done, chance)
        status, output = launch(folder, dying, ranks)
        died = status != 0
        counts["kills survived" if died else "deaths never reached"] += 1
        if died != was_killed(folder):
            return [f"the run ended with status {status}, unlike what was to happen: {output[-1500:]}"]
        newest = newest_checkpoint(folder / "checkpoints")
        at = newest.name if newest else "no checkpoint"
        print(
            f"  {'killed' if died else 'ended'} at {dying.place} {dying.at} on rank {dying.dying_rank}; {at}",
            flush=True,
        )
        wrong = found_wrong(folder) + corrupt(folder)
        if wrong or not died:
            return wrong or differences(folder, alone, changed)
        if chance.random() < 0.3:
            before = ranks
            ranks = 3 - ranks
            changed = changed or newest is not None
            counts["world sizes changed"] += 1
            print(f"  goes on with {ranks} rank(s) instead of {before}", flush=True)
    finish(folder, settings, ranks)
    counts["resumed to the end"] += 1
    return found_wrong(folder) + corrupt(folder) + differences(folder, alone, changed)


def main(argv: list[str] | None = None) -> int:
    """Run scenarios until the time is up; the exit status is the number of violations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="no new scenario begins after so long")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = parser.parse_args(argv)
    end, counts, wrong = time.monotonic() + 60 * args.minutes, Counter(), []
    with tempfile.TemporaryDirectory() as root:
        while time.monotonic() < end:
            number = counts["scenarios"]
            found: list[Any] = scenario(Path(root), number, random.Random(args.seed * 10007 + number), counts)
            counts["scenarios"] += 1
            for line in found:
                print(f"  VIOLATION: {line}", flush=True)
            wrong += found
    print(", ".join(f"{value} {name}" for name, value in counts.items()) + f", {len(wrong)} violations")
    return min(len(wrong), 100)


if __name__ == "__main__":
    sys.exit(main())
