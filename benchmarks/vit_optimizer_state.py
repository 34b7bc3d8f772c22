"""What optimizer state inserted blocks should start with: a copy, an average, or none.

    python benchmarks/vit_optimizer_state.py --data_dir ../shared/data --seeds 0 1 2

trains a ViT of width 48 on 20 classes of icons at 16 pixels for STEPS steps; half-way it grows from 4 to 8 blocks.
Runs of a seed differ in the growth operator and the optimizer state only: first weights, batches and learning rate are
the same. One file per seed in results/vit_optimizer_state/; what is there is not run again. `--report` prints the
means.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, facts
from torch import Tensor, nn

from autoprog_diffusion.vit import ViTGrowth, ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.one_shot import evaluating
from autoprog_diffusion.vit.models import build_model


FOLDER = RESULTS / "vit_optimizer_state"
CLASSES, STEPS, BATCH, WARM_UP, PEAK = 20, 160, 48, 16, 2e-3
OPERATORS, STATES = ("momentum", "interpolation", "identity"), ("copy", "average", "fresh")
AFTER = 16  # steps right after growth, whose mean loss is reported


def load(data_dir: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 1, 16, 16) in [-1, 1], labels, and which of them are for testing."""
    with np.load(data_dir / "icons200_32.npz") as file:
        few = file["y"] < CLASSES
        images = torch.from_numpy(file["x"][few]).float().reshape(-1, 1, 32, 32) / 127.5 - 1
        labels, test = (torch.from_numpy(file[name][few]) for name in ("y", "test"))
        return F.avg_pool2d(images, 2), labels, test


def rate(step: int) -> float:
    """Linear warm-up, then a cosine to zero; growth does not restart it."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * (1 + float(np.cos(np.pi * step / STEPS))) / 2


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(images).logits, labels)


def train(data: tuple[Tensor, Tensor, Tensor], operator: str, state: str, seed: int) -> dict[str, Any]:
    """One run: losses around the growth and at the end."""
    images, labels, test = data
    torch.manual_seed(seed)
    sizes = {"hidden_size": 48, "num_hidden_layers": 8, "num_attention_heads": 2, "patch_size": 4, "num_channels": 1}
    model = build_model("transformers:vit", num_classes=CLASSES, image_size=16, **sizes)
    config = ViTGrowthConfig(
        num_stages=2, resolutions=(16, 16), search="fixed", operator=operator, optimizer_state=state, ema_decay=0.95
    )
    growth, optimizer = ViTGrowth(model, config), torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    pool, draw = (~test).nonzero().flatten(), torch.Generator().manual_seed(seed)
    losses, started = [], time.process_time()
    for _ in range(STEPS):
        rows = pool[torch.randint(len(pool), (BATCH,), generator=draw)]
        loss = loss_of(model, images[rows], labels[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        growth.step()
        losses.append(float(loss.detach()))
    seconds = time.process_time() - started
    held = test.nonzero().flatten()[:: max(1, int(test.sum()) // 1000)]
    result = {"before": mean(losses[STEPS // 2 - AFTER : STEPS // 2]), "last": mean(losses[-AFTER:])}
    result["after"] = mean(losses[STEPS // 2 : STEPS // 2 + AFTER])
    with growth.averaged(), evaluating(model):
        logits = model(images[held]).logits
        result["test_loss"] = float(F.cross_entropy(logits, labels[held]))
        result["test_accuracy"] = float((logits.argmax(1) == labels[held]).float().mean())
    growth.fold(model)
    return {"operator": operator, "optimizer_state": state, "cpu_seconds": seconds, **result}


def report(folder: Path) -> None:
    """Print and write to summary.json means over seeds; differences are to `copy` of the same seed and operator."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("seed_*.json"))]
    rows = [summary(files, operator, state) for operator in OPERATORS for state in STATES]
    (folder / "summary.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(files)} seeds")
    print(f"{'operator':14} {'state':8} loss after growth  test loss  minus copy's  test accuracy")
    for row in rows:
        print(
            f"{row['operator']:14} {row['optimizer_state']:8} {row['after']:17.3f}  {row['test_loss']:9.3f}"
            f"  {row['difference']:+.3f} +- {row['deviation']:.3f}  {100 * row['test_accuracy']:10.1f} %"
        )


def summary(files: list[dict[str, Any]], operator: str, state: str) -> dict[str, Any]:
    runs = [pick(file, operator, state) for file in files]
    gaps = [run["test_loss"] - pick(file, operator, "copy")["test_loss"] for run, file in zip(runs, files)]
    means = {key: mean(run[key] for run in runs) for key in ("after", "test_loss", "test_accuracy")}
    row = {"operator": operator, "optimizer_state": state, "seeds": len(runs), **means}
    return {**row, "difference": mean(gaps), "deviation": pstdev(gaps), "better": sum(gap < 0 for gap in gaps)}


def pick(file: dict[str, Any], operator: str, state: str) -> dict[str, Any]:
    return next(run for run in file["runs"] if (run["operator"], run["optimizer_state"]) == (operator, state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in () if options.report else options.seeds:
        path = options.folder / f"seed_{seed}.json"
        if not path.exists():
            data = load(options.data_dir)
            runs = [train(data, operator, state, seed) for operator in OPERATORS for state in STATES]
            path.write_text(json.dumps({**facts(seed), "runs": runs}, indent=1) + "\n", encoding="utf-8")
    report(options.folder)


if __name__ == "__main__":
    main()
