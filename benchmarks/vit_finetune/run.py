"""Progressive unfreezing of a pretrained ViT against full fine-tuning, a fixed schedule and the last layer alone.

    python benchmarks/vit_finetune/run.py --data_dir ../shared/data

pretrains a ViT of 8 blocks, width 64, patch 6, on five classes of Fashion-MNIST at 24 pixels (once, 12,500 images),
and then fine-tunes it to the other five by each method, on 2,500 images: same steps, same batches, own decayed rate.
The new classes are what is worn on the chest: the other five are told apart so easily that all methods would end
alike.
`full_short` is full fine-tuning for as many FLOPs as `zero_shot` takes. The learning rates of `full` and `last_layer`
are chosen on another seed, by validation images that the results do not use; the other methods take that of `full`.
One line per run in runs.jsonl; what is there is not run again. Times are CPU seconds of a single-threaded
process, searches included, validation left out. `--report` prints the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import DATA, Runs, facts, input_file, load, print_rows, save

from autoprog_diffusion.data.decode import open_image, undecoded
from autoprog_diffusion.data.tables import read_parquet
from autoprog_diffusion.growth import GrowthScheduler, find_adapter
from autoprog_diffusion.training.run import run as run_script
from autoprog_diffusion.vit.models import size_multiple
from autoprog_diffusion.vit.pretrained import fit_head, load_pretrained
from autoprog_diffusion.vit.training.arguments import parse as parse_pretraining
from autoprog_diffusion.vit.training.data import Decoded
from autoprog_diffusion.vit.training.finetuning import FinetuneTrainer, Finetuning, growth_of
from autoprog_diffusion.vit.training.loading import Data, load_data
from autoprog_diffusion.vit.training.pretraining import Pretraining


COUNTS = {"old": (12500, 1000), "new": (2500, 4000)}  # training and validation images
CLASSES = {
    "old": ("Trouser", "Sandal", "Sneaker", "Bag", "Ankle boot"),
    "new": ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"),
}
PRETRAINING = (
    "--model transformers:vit --model_kwargs num_hidden_layers 8 hidden_size 64 num_attention_heads 2 patch_size 6 "
    "--img_size 24 --growth off --batch_size 64 --lr 1e-3 --warmup_steps 50 --clip_grad 1.0 --smoothing 0.1 "
    "--crop pad --aa None --reprob 0 --mixup 0 --cutmix 0 --model_ema_decay 0.98 "
    "--checkpointing_steps 1000000"
)
FINETUNING = (
    "--batch_size 64 --warmup_steps 10 --clip_grad 1.0 --smoothing 0.1 --crop pad --aa None --reprob 0 "
    "--model_ema_decay 0.98"
)
METHODS = {
    "full": "--growth off",
    "last_layer": "--growth off",
    "fixed": "--search none --order suffix --direction unfreeze --num_stages 3",
    "freeze": "",  # the default: GrowthConfig()
    "zero_shot": "--search zero_shot --num_stages 3 --search_orders suffix interleaved",
    "random": "--search zero_shot --search_objective random --num_stages 3 --search_orders suffix interleaved",
    "full_short": "--growth off",
}
RATES = {"full": (2.5e-4, 5e-4, 1e-3, 2e-3), "last_layer": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
TUNING_SEED = 100


def freeze_all_but_the_last_layer(model: nn.Module) -> None:
    """Only the final norm and the head stay trainable: linear probing."""
    layout = find_adapter(model).layout(model)
    outputs = set(layout.outputs.parameters)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in outputs)


def split_classes(data_dir: Path, folder: Path) -> None:
    """Write Fashion-MNIST as two data sets of five classes, with as many images as `COUNTS` says."""
    for name, wanted in COUNTS.items():
        arrays: dict[str, list[Any]] = {"x": [], "y": [], "test": []}
        for part, count in zip(("train", "test"), wanted):
            file = input_file(data_dir, f"fashion_{part}.parquet", "make_fashion.py")
            data = undecoded(read_parquet([file], "label"))
            found = data["label"][:]
            for index, label in enumerate(data.features["label"].str2int(list(CLASSES[name]))):
                rows = [row for row in range(len(data)) if found[row] == label][: count // 5]
                arrays["x"] += [np.asarray(open_image(data, row)) for row in rows]
                arrays["y"] += [index] * len(rows)
                arrays["test"] += [part == "test"] * len(rows)
        names = {"classes": list(CLASSES[name])}
        np.savez(folder / f"{name}.npz", **names, **{key: np.array(value) for key, value in arrays.items()})


def fine_tune(method: str, rate: float, seed: int, steps: int, folder: Path, *, tuning: bool) -> dict[str, Any]:
    """One run; accuracies of the averaged and of the raw weights at its end."""
    flags = f"{FINETUNING} {METHODS[method]} --seed {seed} --lr {rate} --min_lr {rate / 100}".split()
    files = ["--model", str(folder / "pretrained"), "--train_data", str(folder / "new.npz")]
    output = ["--output_dir", str(folder / "run"), "--checkpointing_steps", "1000000"]
    args = Finetuning().parse([*flags, *files, *output, "--max_train_steps", str(steps)])
    set_seed(seed)
    model = load_pretrained(args.model.model)
    data = half(load_data(args, size=24), tuning)
    fit_head(model, data.classes)
    accelerator = Accelerator(cpu=True)
    config, _ = growth_of(args, multiple=size_multiple(model))
    growth = GrowthScheduler(model, config, accelerator)
    trainer = FinetuneTrainer(model, growth, data, args, accelerator, image_size=24)
    if method == "last_layer":
        freeze_all_but_the_last_layer(model)  # after growth, which refuses a model without a trainable block
    trainer.train()
    row = trainer.validate()
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


def mean(runs: Runs, method: str, key: str) -> float:
    return statistics.fmean(run[key] for run in runs.all(purpose="result", method=method))


def measure(runs: Runs, options: argparse.Namespace, folder: Path) -> None:
    """Run what is missing: the pretraining, the choice of rates, and every method and seed."""
    if not (folder / "new.npz").exists():
        split_classes(options.data_dir, folder)
    if not (folder / "pretrained" / "model.safetensors").exists():
        steps = ["--max_train_steps", str(options.pretraining_steps)]
        flags = [*PRETRAINING.split(), *steps, "--train_data", str(folder / "old.npz")]
        args = parse_pretraining([*flags, "--output_dir", str(folder / "pretrained")])
        trainer = run_script(Pretraining(), args)
        runs.add({"purpose": "pretraining", "flags": PRETRAINING, **trainer.metrics.validations[-1]})
    for method, rates in RATES.items():
        for rate in rates:
            if runs.one(purpose="tuning", method=method, lr=rate) is None:
                result = fine_tune(method, rate, TUNING_SEED, options.steps, folder, tuning=True)
                runs.add({"purpose": "tuning", "seed": TUNING_SEED, **result})
    best = {
        method: max(runs.all(purpose="tuning", method=method), key=lambda run: run["ema_accuracy"])["lr"]
        for method in RATES
    }
    # `full_short` last: its steps are those that the FLOPs of `zero_shot` pay for.
    for methods in ([name for name in METHODS if name != "full_short"], ["full_short"]):
        for seed in options.seeds:
            for method in methods:
                if runs.one(purpose="result", method=method, seed=seed) is None:
                    steps = options.steps
                    if method == "full_short":
                        steps = round(steps * mean(runs, "zero_shot", "flops") / mean(runs, "full", "flops"))
                    rate = best.get(method, best["full"])
                    result = fine_tune(method, rate, seed, steps, folder, tuning=False)
                    runs.add({"purpose": "result", "seed": seed, **result})
                    print(f"{method} {seed}: {result['ema_accuracy']:.4f}, {result['cpu_seconds']:.1f} CPU s")


def table(runs: Runs) -> list[dict[str, Any]]:
    """One row per method: accuracy in percent over the seeds, and what it cost, also against full fine-tuning."""
    rows = []
    for method in METHODS:
        found = runs.all(purpose="result", method=method)
        if not found:
            continue
        accuracies = [100 * run["ema_accuracy"] for run in found]
        cost = {key: mean(runs, method, key) for key in ("cpu_seconds", "flops")}
        rows.append(
            {
                "method": method,
                "seeds": len(found),
                "steps": found[0]["steps"],
                "accuracy": statistics.fmean(accuracies),
                "spread": statistics.stdev(accuracies) if len(found) > 1 else 0.0,
                "cpu_seconds": cost["cpu_seconds"],
                "speed_up": mean(runs, "full", "cpu_seconds") / cost["cpu_seconds"],
                "flops_of_full": 100 * cost["flops"] / mean(runs, "full", "flops"),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vit_finetune")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of runs.jsonl and summary.json")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--pretraining_steps", type=int, default=500)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    runs = Runs(options.folder / "runs.jsonl")
    settings = {key: value for key, value in load(options.folder / "summary.json").items() if key != "table"}
    if not options.report:
        torch.set_num_threads(1)
        settings = {**facts(TUNING_SEED), "seeds": options.seeds, "finetuning": FINETUNING}
        options.work.mkdir(parents=True, exist_ok=True)
        measure(runs, options, options.work)
    rows = table(runs)
    print_rows("fine-tuning; accuracy of the averaged weights in percent", rows)
    save(options.folder / "summary.json", {**settings, "pretraining": runs.one(purpose="pretraining"), "table": rows})


if __name__ == "__main__":
    main()
