"""What optimizer state inserted blocks should start with: a copy, an average, or none.

    python benchmarks/vit_optimizer_state/run.py --data_dir ../shared/data --seeds 0 1 2

trains a ViT of width 48 on 20 classes of icons at 16 pixels for STEPS steps; half-way it grows from 4 to 8 blocks.
Runs of a seed differ in the growth operator and the optimizer state only: first weights, batches and learning rate are
the same. One line per run in runs.jsonl; what is there is not run again. `--report` only prints the means.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import DATA, Runs, facts, input_file, print_rows, save

from autoprog_diffusion.vit import ViTGrowth, ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.one_shot import evaluating
from autoprog_diffusion.vit.models import build_model


CLASSES, STEPS, BATCH, WARM_UP, PEAK = 20, 160, 48, 16, 2e-3
OPERATORS, STATES = ("momentum", "interpolation", "identity"), ("copy", "average", "fresh")
AFTER = 16  # steps right after growth, whose mean loss is reported


def load(data_dir: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 1, 16, 16) in [-1, 1], labels, and which of them are for testing."""
    with np.load(input_file(data_dir, "icons200_32.npz", "make_icons.py")) as file:
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


def table(runs: Runs) -> list[dict[str, Any]]:
    """Means over seeds; differences are to `copy` of the same seed and operator."""
    rows = []
    for operator, state in product(OPERATORS, STATES):
        mine = runs.all(operator=operator, optimizer_state=state)
        copies = {run["seed"]: run["test_loss"] for run in runs.all(operator=operator, optimizer_state="copy")}
        gaps = [run["test_loss"] - copies[run["seed"]] for run in mine]
        row: dict[str, Any] = {"operator": operator, "optimizer_state": state, "seeds": len(mine)}
        row |= {key: mean(run[key] for run in mine) for key in ("after", "test_loss", "test_accuracy")}
        row |= {"difference": mean(gaps), "deviation": pstdev(gaps), "better": sum(gap < 0 for gap in gaps)}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of runs.jsonl and summary.json")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(options.folder / "runs.jsonl")
    asked = [] if options.report else list(product(options.seeds, OPERATORS, STATES))
    missing = [(s, o, k) for s, o, k in asked if runs.one(seed=s, operator=o, optimizer_state=k) is None]
    data = load(options.data_dir) if missing else None
    for seed, operator, state in missing:
        runs.add({**facts(seed), **train(data, operator, state, seed)})
    rows = table(runs)
    print_rows("means over seeds", rows)
    save(options.folder / "summary.json", {"rows": rows})


if __name__ == "__main__":
    main()
