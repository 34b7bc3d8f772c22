"""Everything that a GPU is asked, in calls of under 10 minutes: memory, step time, overhead, search, quality.

    python benchmarks/gpu/run.py              # what is missing, for at most 9 minutes; again until nothing is left
    python benchmarks/gpu/run.py --part steps --models sd15 dit
    python benchmarks/gpu/run.py --list       # what is there and what is left
    python benchmarks/gpu/run.py --dry_run    # the same code on the CPU with tiny models, about a minute

Models have published sizes and random weights: nothing is downloaded. Every row is measured in a process of its own,
so that none sees the memory of another, and is kept in runs.jsonl of the device's folder; a row that does not fit says
so. Steps are timed by CUDA events after a warm-up, the median counts; memory is the allocator's peak. Forward passes
run under bfloat16 autocast, AdamW is fused, and TF32 is as PyTorch has it, which every row notes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


os.environ.setdefault("TQDM_DISABLE", "1")
HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # the modules that all benchmarks share

import torch
from common import Runs, facts, print_rows, save
from device import describe, find_device
from loads import LOADS
from parts import PARTS, SEED, Context, Key
from report import summary, tables

from autoprog_diffusion.growth.errors import GrowthError


MINUTES = 9.0
GRACE_S = 30.0  # that a row may take beyond them
WHOLE = 0.9  # of a call's time: a row that had as much and was not done will not be
ERROR_LINES = 12


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    found.add_argument("--models", nargs="+", choices=LOADS, default=None, help="of the parts that have several")
    found.add_argument("--ways", nargs="+", default=None, help="names of ways, as --list prints them")
    found.add_argument("--minutes", type=float, default=MINUTES, help="after which no row begins")
    found.add_argument("--list", action="store_true", help="print what is there and what is left, and stop")
    found.add_argument("--again", action="store_true", help="measure rows that were refused, too")
    found.add_argument("--dry_run", action="store_true", help="tiny models on the CPU")
    found.add_argument("--results", type=Path, help="folder of the results [benchmarks/gpu/results/DEVICE]")
    found.add_argument("--row", help=argparse.SUPPRESS)  # of the process that measures it
    return found


def keys(args: argparse.Namespace) -> Iterator[Key]:
    """Everything that is asked for, what matters most first."""
    for name in args.part:
        for key in PARTS[name].rows(args.dry_run):
            if args.models and key["model"] in LOADS and key["model"] not in args.models:
                continue
            if args.ways and key["way"] not in args.ways:
                continue
            yield {"part": name, **key}


def slug(name: str) -> str:
    """A device's name as part of a path."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def place(args: argparse.Namespace) -> Path:
    """The folder of the results; that of a dry run is temporary."""
    if args.results:
        return args.results
    if args.dry_run:
        return Path(tempfile.mkdtemp(prefix="gpu_dry_run_"))
    return HERE / "results" / slug(torch.cuda.get_device_name(find_device(dry=False)))


def measure(key: Key, context: Context) -> dict[str, Any]:
    """The values of a row, or why there are none."""
    try:
        return PARTS[key["part"]].measure(key, context)
    except torch.OutOfMemoryError as error:
        return {"refused": f"out of memory: {str(error).splitlines()[0]}"}
    except GrowthError as error:
        return {"refused": str(error)}


def in_own_process(key: Key, results: Path, limit_s: float, *, dry: bool = False) -> dict[str, Any]:
    """A row from a process of its own, which has the whole device.

    Raises:
        subprocess.TimeoutExpired: It took longer than the limit.
    """
    command = [sys.executable, __file__, "--row", json.dumps(key), "--results", str(results)]
    command += ["--dry_run"] if dry else []
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, timeout=limit_s)
        errors.seek(0)
        last = errors.read().splitlines()[-ERROR_LINES:]
    if done.returncode:
        print("\n".join(last), flush=True)
        return {"refused": f"failed: {last[-1] if last else done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def work(args: argparse.Namespace, runs: Runs) -> int:
    """Measure what is missing until the time is over; how many rows are left."""
    begin = time.monotonic()
    device = find_device(dry=args.dry_run)
    context = Context(device, args.dry_run, runs)
    left = 0
    for key in keys(args):
        if known(runs, key, again=args.again):
            continue
        rest_s = 60 * args.minutes - (time.monotonic() - begin)
        if rest_s <= 0 or PARTS[key["part"]].needs():
            left += 1
            continue
        started = time.monotonic()
        try:
            values = measure(key, context) if args.dry_run else in_own_process(key, runs.path.parent, rest_s + GRACE_S)
        except subprocess.TimeoutExpired:
            if rest_s < WHOLE * 60 * args.minutes:  # it began late: the next call begins with it
                left += 1
                continue
            values = {"refused": f"not done after {rest_s:.0f} s"}
        forget(runs, key)
        row = {**key, "dry_run": args.dry_run, **facts(SEED), **describe(device), **values}
        row["row_seconds"] = time.monotonic() - started
        runs.add(row)
        print(f"{name_of(key)}: {values.get('refused', 'measured')}, {row['row_seconds']:.1f} s", flush=True)
    return left


def known(runs: Runs, key: Key, *, again: bool) -> bool:
    """Whether a row need not be measured."""
    row = runs.one(**key)
    return row is not None and not (again and "refused" in row)


def forget(runs: Runs, key: Key) -> None:
    """Drop a row that was refused, for one that is measured again."""
    kept = [row for row in runs.rows if any(row.get(name) != value for name, value in key.items())]
    if len(kept) == len(runs.rows):
        return
    runs.rows[:] = kept
    runs.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def name_of(key: Key) -> str:
    """A row's key, for people."""
    return ", ".join(value for value in key.values() if value)


def list_rows(args: argparse.Namespace, runs: Runs) -> None:
    """Print what is there and what is left."""
    for key in keys(args):
        row = runs.one(**key)
        state = "left" if row is None else "refused" if "refused" in row else "done"
        reason = PARTS[key["part"]].needs()
        print(f"{state:8}{name_of(key)}" + (f" ({reason})" if reason and row is None else ""))


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.row:
        key = json.loads(args.row)
        context = Context(find_device(dry=args.dry_run), args.dry_run, Runs(args.results / "runs.jsonl"))
        print(json.dumps(measure(key, context)))
        return
    if args.list and not args.results and not args.dry_run and not torch.cuda.is_available():
        list_rows(args, Runs(Path("none")))
        return
    folder = place(args)
    runs = Runs(folder / "runs.jsonl")
    if args.list:
        list_rows(args, runs)
        return
    left = work(args, runs)
    save(folder / "summary.json", summary(runs.rows))
    for title, rows in tables(runs.rows).items():
        print_rows(title, rows)
    print(f"results: {folder}; {left} rows are left" + (": start it again" if left else ""))


if __name__ == "__main__":
    main()
