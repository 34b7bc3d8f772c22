"""Progressive unfreezing of a pretrained ViT against full fine-tuning, a fixed schedule and the last layer alone.

    python benchmarks/vit_finetune.py --data_dir ../shared/data

pretrains a ViT of 8 blocks, width 64, patch 6, on five classes of CIFAR-10 at 24 pixels (once, 12,500 images), and
then fine-tunes it to the other five by each method, on 2,500 images: same steps, same batches, own decayed rate.
`full_short` is full fine-tuning for as many FLOPs as `zero_shot` takes. The learning rates of `full` and `last_layer`
are chosen on another seed, by validation images that the results do not use; the other methods take that of `full`.
Results are in results/vit_finetune.json; what is there is not run again. Times are CPU seconds of a single-threaded
process, searches included, validation left out. `--report` prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from common import RESULTS, facts, save
from torch import nn

from autoprog_diffusion.data.images import open_image, undecoded
from autoprog_diffusion.data.sources import read_parquet
from autoprog_diffusion.vit.models import size_multiple
from autoprog_diffusion.vit.pretrained import fit_head, load_pretrained
from autoprog_diffusion.vit.training.arguments import parse as parse_pretraining
from autoprog_diffusion.vit.training.data import Decoded
from autoprog_diffusion.vit.training.finetuning import as_pretraining, growth_config, parse
from autoprog_diffusion.vit.training.loading import Data, load_data
from autoprog_diffusion.vit.training.loop import Trainer
from autoprog_diffusion.vit.training.run import run as pretrain
from autoprog_diffusion.vit.training.unfreezing import Unfreezing


NAME = "vit_finetune"
COUNTS = {"old": (12500, 1000), "new": (2500, 4000)}  # training and validation images
PRETRAINING = (
    "--model transformers:vit --model_kwargs num_hidden_layers 8 hidden_size 64 num_attention_heads 2 patch_size 6 "
    "--img_size 24 --growth off --batch_size 64 --lr 1e-3 --warmup_steps 50 --clip_grad 1.0 --smoothing 0.1 "
    "--crop pad --aa None --reprob 0 --mixup 0 --cutmix 0 --model_ema_decay 0.98 --max_train_steps 500 "
    "--checkpointing_steps 50"
)
FINETUNING = (
    "--batch_size 64 --warmup_steps 10 --clip_grad 1.0 --smoothing 0.1 --crop pad --aa None --reprob 0 "
    "--model_ema_decay 0.98"
)
METHODS = {
    "full": "--growth off",
    "last_layer": "--growth off",
    "fixed": "--search none --order suffix",
    "zero_shot": "--search zero_shot",
    "random": "--search zero_shot --search_objective random",
    "full_short": "--growth off",
}
RATES = {"full": (5e-4, 1e-3, 2e-3), "last_layer": (5e-3, 1e-2, 3e-2)}
TUNING_SEED = 100


class LastLayer(Unfreezing):
    """The final norm and the head train, nothing else: linear probing."""

    def prepare(self, model: nn.Module, **settings: Any) -> None:
        super().prepare(model, **settings)
        for unit in (self._growth.layout.inputs, *self._growth.layout.blocks):
            for name in unit.parameters:
                self._model.get_parameter(name).requires_grad_(False)


def split_classes(data_dir: Path, folder: Path) -> None:
    """Write CIFAR-10 as two data sets of five classes, with as many images as `COUNTS` says."""
    for name, wanted in COUNTS.items():
        arrays: dict[str, list[Any]] = {"x": [], "y": [], "test": []}
        for part, count in zip(("train", "test"), wanted):
            data = undecoded(read_parquet(data_dir / f"cifar10_{part}.parquet", "label"))
            found = data["label"][:]
            classes = range(5) if name == "old" else range(5, 10)
            for label in classes:
                rows = [row for row in range(len(data)) if found[row] == label][: count // 5]
                arrays["x"] += [np.asarray(open_image(data, row)) for row in rows]
                arrays["y"] += [label - classes[0]] * len(rows)
                arrays["test"] += [part == "test"] * len(rows)
        names = [data.features["label"].names[label] for label in classes]
        np.savez(folder / f"{name}.npz", **{key: np.array(value) for key, value in arrays.items()}, classes=names)


def fine_tune(method: str, rate: float, seed: int, steps: int, folder: Path, *, tuning: bool) -> dict[str, Any]:
    """One run; accuracies of the averaged and of the raw weights at its end."""
    flags = f"{FINETUNING} {METHODS[method]} --seed {seed} --lr {rate} --min_lr {rate / 100}".split()
    files = ["--model", str(folder / "pretrained"), "--train_data", str(folder / "new.npz")]
    output = ["--output_dir", str(folder / "run"), "--checkpointing_steps", "1000000"]
    args = parse([*flags, *files, *output, "--max_train_steps", str(steps)])
    set_seed(seed)
    model = load_pretrained(args.model.model)
    args = replace(args, model=replace(args.model, img_size=24))
    data = half(load_data(as_pretraining(args), multiple=size_multiple(model), hold_out=False), tuning)
    fit_head(model, data.classes)
    accelerator = Accelerator(cpu=True)
    kind = LastLayer if method == "last_layer" else Unfreezing
    growth = kind(model, growth_config(args, 6), 24, args.train.model_ema_decay, accelerator)
    trainer = Trainer(model, growth, data, as_pretraining(args), accelerator)
    trainer.train()
    row = trainer.record_validation()
    trainer.finish()
    result = {name: row[name] for name in ("accuracy", "ema_accuracy", "seconds", "cpu_seconds", "flops")}
    blocks = [list(stage.blocks) for stage in growth.plan.stages]
    search = sum(decision["seconds"] for decision in growth.decisions)
    accelerator.free_memory()
    return {**result, "method": method, "lr": rate, "steps": steps, "blocks": blocks, "search_seconds": search}


def half(data: Data, first: bool) -> Data:
    """Every other validation image: one half to choose learning rates, the other for the results."""
    assert isinstance(data.val, Decoded)
    return replace(data, val=Decoded(data.val.images[1 - first :: 2], data.val.labels[1 - first :: 2]))


def steps_of(method: str, values: dict[str, Any], steps: int) -> int:
    """Steps of a run: those of all, or as many as the FLOPs of `zero_shot` pay for."""
    if method != "full_short":
        return steps
    return round(steps * mean(values, "zero_shot", "flops") / mean(values, "full", "flops"))


def mean(values: dict[str, Any], method: str, key: str) -> float:
    return statistics.fmean(run[key] for name, run in values["runs"].items() if name.rpartition("_")[0] == method)


def measure(values: dict[str, Any], options: argparse.Namespace, folder: Path) -> None:
    """Run what `values` lacks, and write it after every run."""
    if not (folder / "new.npz").exists():
        split_classes(options.data_dir, folder)
    if not (folder / "pretrained" / "model.safetensors").exists():
        flags = [*PRETRAINING.split(), "--train_data", str(folder / "old.npz"), "--resume_from_checkpoint", "latest"]
        trainer = pretrain(parse_pretraining([*flags, "--output_dir", str(folder / "pretrained")]))
        values["pretraining"] = {"flags": PRETRAINING, **trainer.log.validations[-1]}
    for method, rates in RATES.items():
        for rate in rates:
            found = values["tuning"].setdefault(method, {})
            if str(rate) not in found:
                found[str(rate)] = fine_tune(method, rate, TUNING_SEED, options.steps, folder, tuning=True)
                save(NAME, values)
    best = {m: max(RATES[m], key=lambda rate: values["tuning"][m][str(rate)]["ema_accuracy"]) for m in RATES}
    for seed in options.seeds:
        for method in [name for name in METHODS if name != "full_short"]:
            record(values, method, seed, best.get(method, best["full"]), options.steps, folder)
    for seed in options.seeds:
        steps = steps_of("full_short", values, options.steps)
        record(values, "full_short", seed, best["full"], steps, folder)


def record(values: dict[str, Any], method: str, seed: int, rate: float, steps: int, folder: Path) -> None:
    key = f"{method}_{seed}"
    if key in values["runs"]:
        return
    values["runs"][key] = result = fine_tune(method, rate, seed, steps, folder, tuning=False)
    save(NAME, values)
    print(f"{key}: {result['ema_accuracy']:.4f}, {result['cpu_seconds']:.1f} CPU s, {result['flops']:.3g}", flush=True)


def summary(values: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per method: accuracy in percent over the seeds, and what it cost, also against full fine-tuning."""
    rows = []
    for method in METHODS:
        runs = [run for name, run in values["runs"].items() if name.rpartition("_")[0] == method]
        if not runs:
            continue
        accuracies = [100 * run["ema_accuracy"] for run in runs]
        cost = {key: mean(values, method, key) for key in ("cpu_seconds", "flops")}
        rows.append(
            {
                "method": method,
                "seeds": len(runs),
                "steps": runs[0]["steps"],
                "accuracy": statistics.fmean(accuracies),
                "spread": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
                "cpu_seconds": cost["cpu_seconds"],
                "speed_up": mean(values, "full", "cpu_seconds") / cost["cpu_seconds"],
                "flops_of_full": 100 * cost["flops"] / mean(values, "full", "flops"),
            }
        )
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'method':12} seeds  steps  accuracy of the average    CPU s  speed-up  FLOPs of full")
    for row in rows:
        print(
            f"{row['method']:12} {row['seeds']:5} {row['steps']:6}  {row['accuracy']:13.2f} +- {row['spread']:4.2f} % "
            f"{row['cpu_seconds']:9.1f} {row['speed_up']:8.2f}x {row['flops_of_full']:12.0f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--folder", type=Path, help="where data sets and the pretrained model are kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    path = RESULTS / f"{NAME}.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"tuning": {}, "runs": {}}
    if not options.report:
        torch.set_num_threads(1)
        values |= facts(TUNING_SEED) | {"seeds": options.seeds, "finetuning": FINETUNING}
        folder = options.folder or Path(tempfile.gettempdir()) / NAME
        folder.mkdir(parents=True, exist_ok=True)
        measure(values, options, folder)
        values["table"] = summary(values)
        save(NAME, values)
    report(summary(values))


if __name__ == "__main__":
    main()
