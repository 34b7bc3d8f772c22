"""Files, facts and intervals that all benchmark scripts share.

A benchmark is a folder: `run.py`, `summary.json` (what pages quote), `runs.jsonl` (one line per single run) and
`plot.png`. Floating-point numbers are kept to six significant digits.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import diffusers
import torch

import autoprog_diffusion
from autoprog_diffusion.files import write_text_atomically


ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"  # where the files that make_*.py write are looked for
ASSETS = ROOT / "recipes" / "assets"
DIGITS = 6
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def facts(seed: int) -> dict[str, Any]:
    """Device, versions, seed and command of this process."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "autoprog_diffusion": autoprog_diffusion.__version__,
        "seed": seed,
        "command": " ".join(["python", *sys.argv]),
    }


def rounded(value: Any) -> Any:
    """The value with every float at six significant digits, and None for what is not finite."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(entry) for entry in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def save(path: Path, values: dict[str, Any]) -> None:
    """Write a summary, a list of numbers on one line."""
    text = json.dumps(rounded(values), indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text + "\n")


def load(path: Path) -> dict[str, Any]:
    """A summary; empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def input_file(data_dir: Path, name: str, script: str) -> Path:
    """An input file that a script of this folder makes.

    Raises:
        SystemExit: It is not there; the message says how to make it.
    """
    path = data_dir / name
    if not path.is_file():
        raise SystemExit(f"there is no {path}: `python benchmarks/{script} --data_dir {data_dir}` makes it.")
    return path


def check_names(only: Iterable[str], known: Collection[str]) -> None:
    """Refuse names of `--only` that there are not.

    Raises:
        SystemExit: The message lists the known ones.
    """
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise SystemExit(f"--only {unknown} is not known: use {list(known)}.")


class Runs:
    """The single runs of a benchmark, one JSON line each: a script that is started again does what is missing.

    Args:
        path: The `.jsonl` file. A last line that a kill left half written is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append a run, and return it as it was written."""
        row = rounded(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row

    def all(self, **keys: Any) -> list[dict[str, Any]]:
        """The runs that agree with all keys, in the order of their seeds."""
        found = [row for row in self.rows if all(row.get(key) == value for key, value in keys.items())]
        return sorted(found, key=lambda row: row.get("seed", 0))

    def one(self, **keys: Any) -> dict[str, Any] | None:
        """The first run that agrees with all keys."""
        return next(iter(self.all(**keys)), None)

    def missing(self, methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
        """Method and seed of what was not run yet, seed by seed."""
        for seed in seeds:
            yield from ((method, seed) for method in methods if self.one(method=method, seed=seed) is None)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval by Student's t; nan ends for a single value."""
    middle = mean(values)
    if len(values) < 2:
        return middle, math.nan, math.nan
    half = T95[min(len(values), len(T95) + 1) - 2] * stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def load_module(path: Path, name: str) -> ModuleType:
    """A module by its file, under a name of its own: folders share names such as `run`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def load_recipe(name: str, kind: str) -> Any:
    """A recipe of `recipes/`, by its file and its class."""
    return getattr(load_module(ROOT / "recipes" / f"{name}.py", name), kind)()


def load_literal(name: str) -> ModuleType:
    """The slow, literal formulas of `tests/search/<name>.py`, which no package holds."""
    return load_module(ROOT / "tests" / "search" / f"{name}.py", name)


def print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table of equal objects, one column per key."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*(rows[0] if rows else ()), title=title)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=160).print(table)


def other_models(path: Path, models: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a summary that belong to models which are not measured now."""
    return [row for row in load(path).get("rows", []) if row["model"] not in models]
