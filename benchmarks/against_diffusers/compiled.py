"""CPU time of forward and backward pass of the bundled models, compiled and not, and what compiling took.

    OMP_NUM_THREADS=1 python benchmarks/against_diffusers/compiled.py

Both ways take turns in one process. Compiling starts processes of its own, whose CPU time counts.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, print_rows, save
from threads import Model, dit, sd3, unet

from autoprog_diffusion.growth import find_adapter
from autoprog_diffusion.training.compiled import CompiledBlocks


HERE = Path(__file__).parent
ROUNDS = 8


def cpu(run: Callable[[], object]) -> float:
    """Seconds of CPU time of a call, those of processes that it starts and waits for included."""
    before = os.times()
    run()
    now = os.times()
    return sum(now[:4]) - sum(before[:4])


def measure(name: str, built: Model) -> dict[str, Any]:
    """A row: medians of both ways."""
    model, inputs = built
    model.train()
    blocks = CompiledBlocks(model, find_adapter(model).layout(model))

    def passes() -> None:
        model.zero_grad()
        model(**inputs).sample.square().mean().backward()

    def compiled() -> None:
        with blocks.training(0):
            passes()

    passes()
    started = time.process_time()
    passes()
    ordinary = [time.process_time() - started]
    first = cpu(compiled)
    fast = []
    for _ in range(ROUNDS):
        ordinary.append(cpu(passes))
        fast.append(cpu(compiled))
    row = {"model": name, "ordinary": 1000 * median(ordinary), "compiled": 1000 * median(fast)}
    saved = 100 * (1 - row["compiled"] / row["ordinary"])
    return {**row, "saved_percent": saved, "graphs": sum(blocks.by_stage.values()), "compiling_seconds": first}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        rows = [measure("UNet", unet()), measure("DiT", dit()), measure("SD3", sd3())]
    save(HERE / "compiled.json", {"rows": rows, **facts(0)})
    print_rows("milliseconds of CPU time, forward and backward pass", rows)


if __name__ == "__main__":
    main()
