"""What growth itself costs per optimizer step: off against on with everything trainable.

    python benchmarks/overhead/run.py

One model and one optimizer; a plain PyTorch step (forward, backward, AdamW, zero_grad) and the same step under a
GrowthScheduler of one stage take turns in one process, in an order drawn for every pair. The ratio of a pair cancels
what slows both; reported is the median over pairs with a bootstrap interval of 95 %. Since other jobs shake a step by
more than growth adds to it, the Python of growth is also timed alone, over many calls, and given as a share of a step.
Growth is measured without the stage embedding and with one (its own moving average included). One thread, seconds of
this process's CPU; about 3 minutes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, other_models, print_rows, save
from models import SMALL
from steps import Steps, release

from autoprog_diffusion import GrowthConfig, GrowthScheduler


HERE = Path(__file__).parent
SEED, PAIRS, CALLS, RESAMPLES = 0, 30, 500, 2000
BATCH = 2  # a short step, of which growth is the larger share
TARGET = 0.01
SETTINGS = {
    "no stage embedding": GrowthConfig(num_stages=1, stage_embedding=False),
    "stage embedding": GrowthConfig(num_stages=1, stage_embedding=True, ema_decay=0.99),
}


class Sides:
    """The plain step and the grown one, on the same weights and optimizer state.

    Args:
        steps: The model and its inputs.
        config: Of the grown side.
    """

    def __init__(self, steps: Steps, config: GrowthConfig) -> None:
        self._steps, self._growth = steps, GrowthScheduler(steps.model, config)
        # A rate of zero: both sides compute on the same numbers at every step.
        self._optimizer = torch.optim.AdamW(self._growth.parameters(), lr=0.0)
        self._growth.prepare(steps.model, num_training_steps=10**9, optimizer=self._optimizer)

    def off(self) -> None:
        self._steps.gradients()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def on(self) -> None:
        self.off()
        self._growth.step()

    def timed(self, side: str, clock: Callable[[], float]) -> float:
        """Seconds of one step; the hooks are put on and taken off outside of the clock."""
        embedding = self._growth.stage_embedding
        if side == "off" and embedding is not None:
            embedding.detach()
        started = clock()
        getattr(self, side)()
        seconds = clock() - started
        if side == "off" and embedding is not None:
            embedding.attach(self._steps.model)
        return seconds

    def python_seconds(self) -> float:
        """Seconds per step of `growth.step()` and of the stage embedding's hooks, forward and backward, alone."""
        embedding: Any = self._growth.stage_embedding
        row = None
        if embedding is not None:
            width = embedding.table.shape[1]
            row = torch.randn(len(self._steps.inputs["timestep"]), width, device=embedding.table.device)
        started = time.process_time()
        for _ in range(CALLS):
            self._growth.step()
            if embedding is not None and row is not None:
                embedding._begin(self._steps.model, (), self._steps.inputs)
                outputs = [embedding._add(self._steps.model, (), row) for _ in embedding.points]
                torch.autograd.backward(outputs, [row] * len(outputs))
                embedding.table.grad = None
        return (time.process_time() - started) / CALLS

    def close(self) -> None:
        release(self._growth, self._steps.model)


def compare(sides: Sides, pairs: int, draw: random.Random, clock: Callable[[], float]) -> dict[str, Any]:
    """Times of both sides, and the median over pairs of on / off - 1 with its interval."""
    times: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(pairs):
        for side in draw.sample(("off", "on"), 2):
            times[side].append(sides.timed(side, clock))
    ratios = [on / off - 1 for off, on in zip(times["off"], times["on"])]
    low, high = interval(ratios, draw)
    alone, step = sides.python_seconds(), min(times["off"])
    return {
        "off_ms": 1000 * median(times["off"]), "on_ms": 1000 * median(times["on"]),
        "overhead": median(ratios), "low": low, "high": high, "pairs": pairs,
        "python_us": 1e6 * alone, "python_share": alone / step,
    }  # fmt: skip


def interval(values: list[float], draw: random.Random) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]


def measure(
    model: torch.nn.Module,
    inputs: dict[str, Any],
    pairs: int,
    clock: Callable[[], float] = time.process_time,
    *,
    autocast: bool = False,
) -> list[dict[str, Any]]:
    """One row per setting, after two steps of each that are not counted; a clock of a GPU waits for it."""
    steps, rows = Steps(model.train(), inputs, autocast), []
    for name, config in SETTINGS.items():
        sides = Sides(steps, config)
        for side in ("off", "on") * 2:
            sides.timed(side, clock)
        rows.append({"growth": name, **compare(sides, pairs, random.Random(SEED), clock)})
        sides.close()
    return rows


def draw_plot(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 * len(rows) + 1.2), dpi=110)
    axis = figure.subplots()
    labels = [f"{row['model']}\n{row['growth']}" for row in rows]
    middle = [100 * row["overhead"] for row in rows]
    spread = [[100 * abs(row["overhead"] - row[end]) for row in rows] for end in ("low", "high")]
    axis.errorbar(middle, labels, xerr=spread, fmt="o", capsize=3, label="step, on against off")
    axis.plot(
        [100 * row["python_share"] for row in rows], labels, "x", color="C1", label="growth's calls, timed alone"
    )
    axis.axvline(100 * TARGET, color="0.5", linestyle="--", label="target")
    axis.set(xlabel="overhead (% of a step)")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SMALL, default=list(SMALL), help="others keep their rows")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--output", type=Path, default=HERE / "summary.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rows = other_models(args.output, args.models)
    for name in args.models:
        rows += [{"model": name, "batch": BATCH, **row} for row in measure(*SMALL[name](BATCH), args.pairs)]
    print_rows("growth off and on", rows)
    worst = {key: max(row[key] for row in rows) for key in ("overhead", "python_share")}
    save(args.output, {**facts(SEED), "rows": rows, "largest": worst, "target": TARGET})
    draw_plot(rows, args.output.with_name("plot.png"))


if __name__ == "__main__":
    main()
