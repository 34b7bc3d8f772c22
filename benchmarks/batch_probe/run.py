"""Does the gradient noise scale predict what half the batch is worth?

    OMP_NUM_THREADS=1 python benchmarks/batch_probe/run.py --data_dir ../shared/data
    python benchmarks/batch_probe/run.py --table

The cases of time_to_quality, trained in full on 8 images a step at a constant rate after warm-up. Before the first
step and after 80 the noise scale is measured from 24 calls: of plain gradients, and of gradients as Adam sees them,
each divided by the root of the optimizer's second moment. Predicted is how many times fewer FLOPs half the batch needs
to get as far, (8 + noise) / (4 + noise). Measured is the same in time_to_quality: half the batch and twice the steps,
against a full run of the right length. Every measurement leaves a line in runs.jsonl; a suite that is started again
does what is missing.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "time_to_quality")]  # what all benchmarks share, and the cases

from cases import CASES, Subject
from common import DATA, Runs, facts, load, print_rows, save
from loop import batches

from autoprog_diffusion.growth import GrowthConfig
from autoprog_diffusion.search.batch_advice import sample_ratio
from autoprog_diffusion.search.noise_estimate import NoiseEstimate
from autoprog_diffusion.search.noise_scale import measure_calls
from autoprog_diffusion.search.recorded_calls import calls_from_loss
from autoprog_diffusion.training.held_out import FullSize


HERE = Path(__file__).parent
CALLS, RATE, WARMUP = 24, 5e-4, 8
POINTS = (0, 80)
KINDS = (("start", 0, "plain"), ("later", 80, "plain"), ("adam", 80, "adam"))  # columns of the table


@contextmanager
def divided(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, every gradient is divided by the root of Adam's second moment."""
    handles = []
    for parameter in model.parameters():
        if parameter in optimizer.state:
            scale = 1 / (optimizer.state[parameter]["exp_avg_sq"].sqrt() + 1e-8)
            handles.append(parameter.register_hook(lambda gradient, scale=scale: gradient * scale))
    yield
    for handle in handles:
        handle.remove()


def measure(subject: Subject, optimizer: torch.optim.Optimizer, rows: Iterator[Any]) -> dict[str, NoiseEstimate]:
    """The noise scale of plain gradients, and of Adam's, from the same calls."""
    model = subject.denoiser

    def calls() -> Any:
        return recorded

    with torch.random.fork_rng():
        recorded = calls_from_loss(model, subject.task.loss, rows, CALLS)
        found = {"plain": measure_calls(model, calls).total}
        if optimizer.state:
            with divided(model, optimizer):
                found["adam"] = measure_calls(model, calls).total
    return found


def run_case(name: str, seed: int, runs: Runs, data_dir: Path) -> None:
    """Train one case, and measure at every point."""
    case = CASES[name]
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        subject = case.open(seed, Path(folder), data_dir)
        model = subject.denoiser
        model.requires_grad_(requires_grad=True).train()
        full: Any = FullSize(GrowthConfig(resolution_multiple=subject.multiple))
        subject.task.enter_stage(full)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
        order = batches(subject.count, seed)
        rows = ({"index": torch.tensor([next(order) for _ in range(case.batch)])} for _ in iter(int, 1))
        for step in range(POINTS[-1] + 1):
            if step in POINTS:
                start = time.process_time()
                for kind, found in measure(subject, optimizer, rows).items():
                    key = {"case": name, "seed": seed, "step": step, "kind": kind}
                    cpu = time.process_time() - start
                    row = runs.add({**key, "batch": case.batch, "calls": CALLS, **found.to_dict(), "cpu": cpu})
                    print(row, flush=True)
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / WARMUP)
            subject.task.loss(model, next(rows)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def predicted(row: dict[str, Any]) -> float:
    """How many times fewer images half the batch needs, by one measurement."""
    return sample_ratio(row["batch"] / 2, row["batch"], row["samples"] or math.inf)


def table(runs: Runs) -> list[dict[str, Any]]:
    """A row per case and seed that was measured to the end, beside what time_to_quality says."""
    quality = load(BENCHMARKS / "time_to_quality" / "summary.json")
    rows = []
    for name, case in CASES.items():
        long = next(row for row in quality[name] if row["name"] == "full_long")
        for last in runs.all(case=name, step=POINTS[-1], kind="adam"):
            row = {"case": name, "title": case.title, "seed": last["seed"]}
            for label, step, kind in KINDS:
                found = runs.one(case=name, seed=last["seed"], step=step, kind=kind)
                if found is not None:
                    row[label] = f"{found['samples']:.0f} ({found['low']:.0f} to {found['high']:.0f})"
                    row[f"predicted_{label}"] = f"{predicted(found):.2f}x"
            row["measured"] = long["schedules_text"]
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=list(CASES), help="cases")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data_dir", type=Path, default=DATA, help="folder of emoji_styles_64.parquet")
    parser.add_argument("--table", action="store_true", help="the table of the rows that are there")
    args = parser.parse_args()
    runs = Runs(HERE / "runs.jsonl")
    if not args.table:
        for seed in args.seeds:
            for name in args.only:
                if runs.one(case=name, seed=seed, step=POINTS[-1]) is None:
                    run_case(name, seed, runs, args.data_dir)
        save(HERE / "summary.json", {**facts(args.seeds[0]), "rows": table(runs)})
    print_rows("noise scale in images; worth of half the batch", table(runs))


if __name__ == "__main__":
    main()
