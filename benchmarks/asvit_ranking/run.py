"""Do scores without training tell which As-ViT topology trains to a higher accuracy?

    python benchmarks/asvit_ranking/run.py --data_dir ../shared/data            # trains what is missing, then reports
    python benchmarks/asvit_ranking/run.py --data_dir ../shared/data --limit 5  # at most 5 networks in this call
    python benchmarks/asvit_ranking/run.py --report                               # table and plot of what is there

Topologies are drawn uniformly from the published space at 32 pixels, one block a stage and width 16, and trained for
the same number of steps on the same batches in the same order (icons of 200 classes, no augmentation); scored at five
initialisations on 16 training images. One line per training in runs.jsonl; what is there is not trained again. The
first pass trains all topologies with seed 0, the second with seed 1, and so on: accuracies are means over
the seeds that all topologies have. About 20 CPU seconds a network.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import Runs, facts, input_file, print_rows, save
from correlation import bootstrap_interval, kendall_tau, noise_ceiling, ranks

from autoprog_diffusion.vit.asvit import AsViT, Genotype, SearchSpace
from autoprog_diffusion.vit.asvit.cost import multiply_adds, parameter_count
from autoprog_diffusion.vit.asvit.scores import topology_scores


HERE = Path(__file__).parent
# Name -> (title, +1 where more should be better).
METRICS = {
    "length_distortion": ("length distortion", 1),
    "ntk": ("NTK condition number", -1),
    "curvature": ("curvature", 1),
    "gauss_length": ("Gauss-map length", 1),
    "params": ("parameters, thousands", 1),
    "multiply_adds": ("multiply-adds, thousands", 1),
}


@dataclass(frozen=True)
class Settings:
    """What must be the same for all lines of one file."""

    data: str = "icons200"
    image_size: int = 32
    width: int = 16
    topologies: int = 60
    sampling_seed: int = 0
    steps: int = 400
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 40
    weight_decay: float = 0.05


@dataclass(frozen=True)
class Images:
    """Normalised training and test images (N, 3, S, S), float32, and labels (N,)."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1


def load(folder: Path) -> Images:
    with np.load(input_file(folder, "icons200_32.npz", "make_icons.py")) as file:
        pictures = torch.from_numpy(file["x"])[:, None].expand(-1, 3, -1, -1).float()
        labels, test = (torch.from_numpy(file[name]) for name in ("y", "test"))
    some = pictures[~test][:5000]
    mean, std = some.mean((0, 2, 3), keepdim=True), some.std((0, 2, 3), keepdim=True)
    pictures = (pictures - mean) / std
    return Images(pictures[~test], labels[~test], pictures[test], labels[test])


def sample(settings: Settings) -> list[Genotype]:
    """Different topologies, drawn uniformly."""
    rng, space = Random(settings.sampling_seed), SearchSpace().at(settings.image_size, settings.width)
    found: dict[Genotype, None] = {}
    while len(found) < settings.topologies:
        found.setdefault(replace(space.sample(rng), width=settings.width))
    return list(found)


def train(genotype: Genotype, seed: int, images: Images, settings: Settings) -> dict[str, float]:
    """Train one network; seed draws its weights, and the batches, which are the same for every network."""
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = AsViT(genotype, images.classes, settings.image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / settings.warmup) * (1 - step / settings.steps)
    )
    started = time.process_time()
    for _ in range(settings.steps):
        rows = torch.randint(len(images.labels), (settings.batch,), generator=order)
        loss = F.cross_entropy(model(images.train[rows]), images.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.process_time() - started
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part) for part in images.test.split(500)])
    accuracy = float((logits.argmax(1) == images.test_labels).float().mean())
    return {
        "accuracy": accuracy,
        "test_loss": float(F.cross_entropy(logits, images.test_labels)),
        "cpu_seconds": seconds,
    }


def score(genotype: Genotype, images: Images, settings: Settings) -> dict[str, float]:
    """All metrics of one network; none looks at a label."""
    rows = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))[:16]
    started = time.process_time()
    found = topology_scores(genotype, image_size=settings.image_size, images=images.train[rows], second_order=True)
    return {
        **asdict(found),
        "score_cpu_seconds": time.process_time() - started,
        "params": parameter_count(genotype, images.classes),
        "multiply_adds": multiply_adds(genotype, settings.image_size, images.classes),
    }


def read(folder: Path, settings: Settings | None) -> tuple[Settings, Runs]:
    """The runs of a folder and their settings, which must be those that are asked for."""
    runs = Runs(folder / "runs.jsonl")
    if not runs.rows:
        if settings is None:
            raise SystemExit(f"{runs.path} is not there yet: run without --report first.")
        return settings, runs
    there = Settings(**runs.rows[0]["settings"])
    if settings is not None and there != settings:
        raise SystemExit(
            f"{runs.path} was made with {there}, not {settings}: give the same settings, or move the file away."
        )
    return there, runs


def run(settings: Settings, folder: Path, data_dir: Path, seeds: int, limit: int | None) -> None:
    """Train what the file lacks, in a fixed order."""
    runs = read(folder, settings)[1]
    asked = [(genotype, seed) for seed in range(seeds) for genotype in sample(settings)]
    todo = [(g, seed) for g, seed in asked if runs.one(genotype=str(g), seed=seed) is None][:limit]
    images = load(data_dir) if todo else None
    for genotype, seed in tqdm(todo, desc="networks"):
        assert images is not None
        row = {"genotype": str(genotype), "seed": seed, **train(genotype, seed, images, settings)}
        if seed == 0:
            row |= score(genotype, images, settings)
        runs.add({**row, "settings": asdict(settings)})


def report(folder: Path) -> None:
    """Correlations with intervals, the noise ceiling, a table and a plot."""
    settings, runs = read(folder, None)
    by_network: dict[str, dict[int, dict[str, Any]]] = {}
    for row in runs.rows:
        by_network.setdefault(row["genotype"], {})[row["seed"]] = row
    networks = [found for found in by_network.values() if 0 in found and not found[0]["degenerate"]]
    kept = min(len(found) for found in networks)
    accuracy, loss = (
        np.array([np.mean([found[seed][key] for seed in range(kept)]) for found in networks])
        for key in ("accuracy", "test_loss")
    )
    values = {name: sign * np.array([n[0][name] for n in networks], float) for name, (_, sign) in METRICS.items()}
    values["rank_sum"] = ranks(values["length_distortion"]) + ranks(values["ntk"])
    table = {}
    for name, value in values.items():
        low, high = bootstrap_interval(value, accuracy)
        # A score that only counts parameters would be no news.
        alike = kendall_tau(value, values["params"])
        # The test loss has less sampling noise than the accuracy.
        table[name] = {
            "tau": kendall_tau(value, accuracy), "low": low, "high": high,
            "tau_with_loss": kendall_tau(value, -loss), "tau_with_params": alike,
        }  # fmt: skip
    twice = [[found[0]["accuracy"], found[1]["accuracy"]] for found in networks if 1 in found]
    # The spread is that of all topologies; only the noise is measured on those that were trained twice.
    ceiling = noise_ceiling(np.array(twice), accuracy, kept) if len(twice) > 2 else None
    print(f"{len(networks)} topologies, accuracy {accuracy.min():.3f} to {accuracy.max():.3f}, {kept} seed(s) each")
    print_rows("Kendall's tau-b with accuracy", [{"score": name, **row} for name, row in table.items()])
    if ceiling:
        print(f"a perfect metric would reach tau {ceiling['ceiling']:.2f}")
    totals = {key: sum(row.get(key, 0.0) for row in runs.rows) for key in ("cpu_seconds", "score_cpu_seconds")}
    summary = {
        **facts(settings.sampling_seed),
        "command": f"python benchmarks/asvit_ranking/run.py --data_dir ../shared/data --seeds {kept}",
        "settings": asdict(settings),
        "networks": len(networks),
        "seeds": kept,
        "degenerate": len(by_network) - len(networks),
        "accuracy": [float(accuracy.min()), float(accuracy.max())],
        "tau": table,
        "noise": ceiling,
        "totals": totals,
    }
    save(folder / "summary.json", summary)
    draw(values, accuracy, table, settings, folder / "plot.png")


def draw(
    values: dict[str, np.ndarray], accuracy: np.ndarray, table: dict[str, Any], settings: Settings, path: Path
) -> None:
    """One scatter panel a metric."""
    from matplotlib.figure import Figure

    titles = {name: title for name, (title, _) in METRICS.items()} | {"rank_sum": "rank sum of the first two"}
    signs = {name: sign for name, (_, sign) in METRICS.items()} | {"rank_sum": 1}
    figure = Figure(figsize=(14, 6.4), layout="constrained")
    axes = figure.subplots(2, 4, sharey=True)
    for axis, name in zip(axes.flat, values):
        row = table[name]
        unit = 1e-3 if "thousands" in titles[name] else 1.0
        axis.scatter(signs[name] * values[name] * unit, 100 * accuracy, s=14, alpha=0.7)
        axis.set_title(f"tau {row['tau']:+.2f}  [{row['low']:+.2f}, {row['high']:+.2f}]", fontsize=10)
        axis.set_xlabel(titles[name] + (" (less is better)" if signs[name] < 0 else ""))
    axes.flat[-1].axis("off")
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[1, 0].set_ylabel("test accuracy, %")
    figure.suptitle(
        f"{len(accuracy)} As-ViT topologies, {settings.data}, {settings.steps} steps; tau-b is signed so that + means "
        "the metric is right, 95 % bootstrap intervals"
    )
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, help="folder of the images")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--topologies", type=int, default=Settings.topologies)
    parser.add_argument("--seeds", type=int, default=1, help="trainings of every topology")
    parser.add_argument("--limit", type=int, help="networks to train in this call")
    parser.add_argument("--folder", type=Path, default=HERE, help="of runs.jsonl and summary.json")
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.report:
        if args.data_dir is None:
            parser.error("--data_dir is needed, the folder that holds the images")
        settings = Settings(steps=args.steps, topologies=args.topologies)
        run(settings, args.folder, args.data_dir, args.seeds, args.limit)
    report(args.folder)


if __name__ == "__main__":
    main()
