"""The table and the plot of runs.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common import Runs, print_rows, save
from table import steady_cpu


Row = dict[str, Any]
SHOWN = (0.34, 0.56)
COLOURS = 10  # that matplotlib has before it begins again


def best(row: Row) -> Row:
    """The evaluation with the lowest held-out loss: where a run that is watched has its weights from."""
    return min(row["curve"], key=lambda point: point["held_out_loss"])


def cheapest(rows: Sequence[Row], loss: float) -> float | None:
    """Fewest FLOPs after which one of the runs has come down to a loss; None where none does.

    Args:
        rows: Runs of one seed.
        loss: Held-out loss.
    """
    reached = [point["flops"] for row in rows for point in row["curve"] if point["held_out_loss"] <= loss]
    return min(reached, default=None)


def line(rows: Sequence[Row], full: Sequence[Row], baselines: Sequence[Row]) -> Row:
    """What a method is worth, as means over the seeds that full fine-tuning has too.

    Args:
        rows: Runs of the method, by seed.
        full: Full fine-tuning, by seed.
        baselines: Full fine-tuning with a cosine, with fewer steps and with an average.
    """
    pairs = [(row, base) for row in rows for base in full if row["seed"] == base["seed"]]
    ratios = []
    for row, _ in pairs:
        point = best(row)
        needed = cheapest([each for each in baselines if each["seed"] == row["seed"]], point["held_out_loss"])
        if needed is not None:
            ratios.append(needed / point["flops"])
    return {
        "name": rows[0]["method"],
        "method": rows[0]["title"],
        "seeds": len(pairs),
        "steps": rows[0]["steps"],
        "epochs": rows[0]["epochs"],
        "flops_percent": mean(100 * row["curve"][-1]["flops"] / base["curve"][-1]["flops"] for row, base in pairs),
        "cpu_percent": mean(100 * steady_cpu(row) / steady_cpu(base) for row, base in pairs),
        "kid": mean(row["pictures"]["kid_rounded"] for row, _ in pairs),
        "agreement": mean(row["pictures"]["agreement"] for row, _ in pairs),
        "final_loss": mean(row["curve"][-1]["held_out_loss"] for row, _ in pairs),
        "best_loss": mean(best(row)["held_out_loss"] for row, _ in pairs),
        "best_step": mean(best(row)["step"] for row, _ in pairs),
        "best_flops_percent": mean(100 * best(row)["flops"] / base["curve"][-1]["flops"] for row, base in pairs),
        # How many times its FLOPs the cheapest full run needs for as good a loss, where one gets there.
        "against_full": mean(ratios) if ratios else None,
        "against_full_text": f"{mean(ratios):.2f}x, {len(ratios)} of {len(pairs)}" if ratios else "full never",
    }


def table(runs: Runs) -> list[Row]:
    """A line for every method."""
    full = runs.all(method="full")
    baselines = [row for name in ("full", "full_by_paper", "full_average") for row in runs.all(method=name)]
    names = list(dict.fromkeys(row["method"] for row in runs.rows))
    return [line(runs.all(method=name), full, baselines) for name in names]


def draw(runs: Runs, path: Path) -> None:
    """Held-out loss against FLOPs, the first seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    first = runs.rows[0]["seed"]
    for number, row in enumerate(runs.all(seed=first)):
        points = [point for point in row["curve"] if point["step"]]
        x = [point["flops"] / 1e12 for point in points]
        y = [point["held_out_loss"] for point in points]
        style = "-" if number < COLOURS else "--"
        axes.plot(x, y, style, color=f"C{number % COLOURS}", marker=".", label=row["title"])
    axes.set_xlabel("TFLOPs of training")
    axes.set_ylabel("held-out loss")
    axes.set_ylim(*SHOWN)  # what is trained at a quarter of the resolution begins far above
    axes.set_title(f"the bundled DiT to ten new classes, seed {first}")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_report(folder: Path) -> None:
    """Print the table; write summary.json and plot.png."""
    runs = Runs(folder / "runs.jsonl")
    rows = table(runs)
    print_rows("AutoProg-Zero in its paper's regime", rows)
    save(folder / "summary.json", {"rows": rows})
    draw(runs, folder / "plot.png")
