"""Is what the tracker says of fake tensors what a real run takes? Medium models of six classes, on the CPU.

    python benchmarks/memory/validate.py
    python benchmarks/memory/validate.py --device cuda   # real runs on a GPU, by torch.cuda.max_memory_allocated

Every model and plan trains twice, each time in a process of its own: for real, and on fake tensors under the tracker.
Real memory of the CPU is what the kernel says of the process: the high-water mark of its resident memory
(`VmHWM` of /proc/self/status, set back before every stage), less what was resident before the model was made. malloc
gives freed memory back at once (`MALLOC_TRIM_THRESHOLD_`). Bytes of parameters, gradients and optimizer state are
counted on the real tensors and have to be equal. About 15 minutes on one core.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # the modules that all benchmarks share

import diffusers
import torch
from common import facts, load, print_rows, save
from medium import MEDIUM
from plans import FULL, RANK
from torch import Tensor

from autoprog_diffusion.planner.device import NoValues, planned_device, without_memory
from autoprog_diffusion.planner.forked import forked
from autoprog_diffusion.planner.settings import Plan
from autoprog_diffusion.planner.step import NoTracker, Run, train_step
from autoprog_diffusion.planner.tracker import MemoryTracker, parts


RESULTS = HERE / "validation.json"
WITHIN = 0.1
STEPS = 2  # of a stage: the second one has the optimizer's state from its start
COUNTED = ("weights", "gradients", "optimizer")
# Memory that is freed goes back to the kernel, so that resident memory is what is held.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
AGAIN = {"checkpointing": "all"}
WINDOW = {"direction": "window", "num_stages": 3, "frozen_dtype": "int8"}
PLANS = {
    plan.name: plan
    for plan in (
        Plan("full", FULL, autocast=False),
        Plan("full, checkpointing", {**FULL, **AGAIN}, autocast=False),
        Plan("freeze", {"num_stages": 3}, autocast=False),
        Plan("window 1/3, frozen int8", WINDOW, autocast=False),
        Plan("LoRA", FULL, lora=RANK, autocast=False),
    )
}
# Diffusers' class takes no adapters.
REFUSED = (("DiT", "LoRA"),)


class ResidentMemory:
    """Peak resident memory of this process above a base, as the kernel counts it."""

    def __init__(self) -> None:
        self._base = self._read("VmRSS")

    def begin(self) -> None:
        """Set the high-water mark back to what is resident now."""
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes."""
        return self._read("VmHWM") - self._base

    def _read(self, name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class AllocatedMemory:
    """Peak memory of a GPU that PyTorch's allocator gave away."""

    def begin(self) -> None:
        """Set the peak back to what is held now."""
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes."""
        return torch.cuda.max_memory_allocated()


def held(run: Run) -> dict[str, int]:
    """Bytes of the parameters, gradients and optimizer state of a run, by its tensors themselves."""
    gradients = [one.grad for one in run.trained()]
    found = zip(COUNTED, (run.weights(), gradients, run.state()))
    return {kind: count_bytes(tensors) for kind, tensors in found}


def count_bytes(tensors: list[Any]) -> int:
    """Bytes of the storages of some tensors, each storage once."""
    storages: dict[int, int] = {}
    for tensor in tensors:
        for part in parts(tensor):
            storage = part.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def real(model: str, plan: Plan, device: str) -> list[dict[str, Any]]:
    """Train for real: per stage the measured peak, and what the tensors hold."""
    medium = MEDIUM[model]
    warm_up(device)
    memory = AllocatedMemory() if device == "cuda" else ResidentMemory()
    run = Run(plan, medium.build, medium.inputs, torch.device(device))
    rows = []
    for index, _ in enumerate(run.growth.plan.stages):
        if index:
            run.growth.step()
        memory.begin()
        found: list[dict[str, int]] = []
        for _ in range(STEPS):
            train_step(run, NoTracker(), partial(note, found, partial(held, run)))
        rows.append({"peak": memory.peak(), **found[-1]})
    return rows


def note(found: list[dict[str, int]], look: Callable[[], dict[str, int]]) -> None:
    """Keep what is held now."""
    found.append({kind: look()[kind] for kind in COUNTED})


def warm_up(device: str) -> None:
    """What a process holds once it has trained anything: threads, and the code of kernels."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.Linear(14, 4)).to(device)
    layers(torch.randn(1, 4, 16, 16, device=device)).sum().backward()
    torch.optim.AdamW(layers.parameters()).step()
    gc.collect()


def predicted(model: str, plan: Plan, device: str) -> list[dict[str, Any]]:
    """The same on fake tensors, by the tracker."""
    medium = MEDIUM[model]
    with without_memory() if device == "cuda" else NoValues() as entered, MemoryTracker() as tracker:
        place = entered if device == "cuda" else torch.device("cpu")
        run = Run(plan, medium.build, medium.inputs, place)
        tracker.label("activations", [value for value in run.inputs.values() if isinstance(value, Tensor)])
        rows = []
        for index, _ in enumerate(run.growth.plan.stages):
            if index:
                run.growth.step()
            tracker.label("weights", run.weights())
            tracker.begin()
            found: list[dict[str, int]] = []
            for _ in range(STEPS):
                train_step(run, tracker, partial(note, found, partial(tracker.now, place.type)))
            rows.append({"peak": tracker.peak(place.type).total, **found[-1]})
    return rows


def compare(model: str, plan: str, device: str) -> list[dict[str, Any]]:
    """A row per stage of one model and plan."""
    rows = []
    found = [forked(train, model, PLANS[plan], device) for train in (real, predicted)]
    for one in found:
        if "refused" in one:
            raise SystemExit(f"{model}, {plan}: {one['refused']}")
    for stage, (measured, said) in enumerate(zip(*found)):
        rows.append(
            {
                "model": model,
                "plan": plan,
                "stage": stage,
                "measured": measured["peak"],
                "predicted": said["peak"],
                "ratio": said["peak"] / measured["peak"],
                "exact": all(measured[kind] == said[kind] for kind in COUNTED),
                **{kind: measured[kind] for kind in COUNTED},
            }
        )
    return rows


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How far predictions are from what was measured, at most, and whether all counted bytes are equal."""
    return {
        "models": len({row["model"] for row in rows}),
        "plans": len({row["plan"] for row in rows}),
        "count": len(rows),
        "within": sum(abs(row["ratio"] - 1) <= WITHIN for row in rows),
        "exact": sum(row["exact"] for row in rows),
        "lowest": min(row["ratio"] for row in rows),
        "highest": max(row["ratio"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MEDIUM, default=list(MEDIUM))
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        # malloc reads them when the process begins.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1"})
    if args.device == "cuda":
        planned_device()
    for model in args.models:
        getattr(diffusers, MEDIUM[model].cls)
    rows = [
        row
        for row in load(args.output).get("rows", [])
        if row["model"] not in args.models or row["plan"] not in args.plans
    ]
    for model in args.models:
        for plan in args.plans:
            if (model, plan) in REFUSED:
                continue
            found = compare(model, plan, args.device)
            rows += found
            print_rows("Peak of a real run and of the tracker", found)
            save(args.output, {**facts(0), "within": WITHIN, "summary": summed(rows), "rows": rows})
    print(summed(rows))


if __name__ == "__main__":
    main()
