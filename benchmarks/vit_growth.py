"""Time to accuracy of progressive ViT pretraining on CIFAR-10, against ordinary training, and what its parts do.

    python benchmarks/vit_growth.py --data_dir ../shared/data --seeds 0 1 2

trains a ViT of 12 blocks, width 64, patch 4, on 20,000 images of CIFAR-10 at 24 pixels. `full` is ordinary training
for STEPS optimizer steps; `full_short` is ordinary training for as many FLOPs as `fixed` takes; all others grow, for
STEPS steps. Every run has its own fully decayed learning rate and ends in the whole model at full resolution. One file
per method and seed in results/vit_growth/; what is there is not run again. `--report` prints the table and draws the
plot. Times are CPU seconds of a single-threaded process, steps and search included, validation left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from common import RESULTS, facts

from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth
from autoprog_diffusion.vit.models import build_model
from autoprog_diffusion.vit.training.arguments import Arguments, parse
from autoprog_diffusion.vit.training.data import Decoded
from autoprog_diffusion.vit.training.loading import Data, load_data
from autoprog_diffusion.vit.training.loop import Trainer
from autoprog_diffusion.vit.training.run import growth_config


FOLDER = RESULTS / "vit_growth"
STEPS = 240
COMMON = (
    "--model transformers:vit --model_kwargs num_hidden_layers 12 hidden_size 64 num_attention_heads 2 patch_size 4 "
    "--img_size 24 --batch_size 64 --lr 1e-3 --weight_decay 0.05 --warmup_steps 30 --min_lr 1e-5 --clip_grad 1.0 "
    "--smoothing 0.0 --crop pad --aa None --reprob 0 --mixup 0 --cutmix 0 --model_ema_decay 0.98 "
    "--max_train_samples 20000 --search_samples 256 --evaluations 3 --resolutions 12 16 20 24 --min_depth 0.5 "
    "--boundaries 0.3 0.6 0.8"
)
METHODS = {
    "full": "--growth off",
    "fixed": "--search fixed",
    "full_short": "--growth off",
    "one_shot": "--search one_shot",
    "zero_shot": "--search zero_shot",
    "random": "--search random",
    "stacking": "--search fixed --operator stacking",
}
ABLATIONS = {
    "operator_random": "--search fixed --operator random",
    "operator_interpolation": "--search fixed --operator interpolation",
    "operator_identity": "--search fixed --operator identity",
    "state_average": "--search fixed --optimizer_state average",
    "state_fresh": "--search fixed --optimizer_state fresh",
}
CURVE_EVERY, CURVE_IMAGES, FINAL_IMAGES = 40, 500, 2500


def arguments(method: str, seed: int, steps: int, data_dir: Path, extra: list[str]) -> Arguments:
    flags = f"{COMMON} {({**METHODS, **ABLATIONS})[method]} --seed {seed} --max_train_steps {steps}".split()
    files = [str(data_dir / f"cifar10_{part}.parquet") for part in ("train", "test")]
    output = ["--output_dir", tempfile.gettempdir(), "--checkpointing_steps", "1000000"]
    return parse([*flags, "--train_data", files[0], "--val_data", files[1], *output, *extra])


def train(args: Arguments, data: Data) -> dict[str, Any]:
    """One run: the accuracy of the averaged weights against the cost, and both accuracies at the end."""
    curve: list[dict[str, float]] = []
    set_seed(args.train.seed)
    size = args.model.img_size
    model = build_model(args.model.model, num_classes=10, image_size=size, **args.model.model_kwargs)
    config = growth_config(args)
    held = data.held_out if config.search in ("one_shot", "zero_shot") else None
    accelerator = Accelerator(cpu=True)
    growth = ViTGrowth(model, config, accelerator)
    trainer = Trainer(model, growth, dataclasses.replace(data, held_out=held), args, accelerator)

    def spent() -> dict[str, float]:
        return {name: trainer.log.total(name) for name in ("cpu_seconds", "seconds", "flops")}

    def on_step(step: int) -> None:
        if step % CURVE_EVERY == 0 and step < trainer.max_steps and not growth.searching:
            trainer.data = dataclasses.replace(data, val=some(data.val, CURVE_IMAGES))
            shape = {"depth": growth.depth, "resolution": growth.resolution}
            curve.append({"step": step, **spent(), **shape, **trainer.validate(averaged=True)})

    trainer.train(on_step)
    trainer.data = dataclasses.replace(data, val=some(data.val, FINAL_IMAGES))
    final = {"averaged": trainer.validate(averaged=True), "online": trainer.validate(averaged=False)}
    trainer.finish()
    result = {"steps": trainer.max_steps, **spent(), "final": final, "curve": curve}
    result["stages"] = [dataclasses.asdict(row) for row in trainer.log.summaries()]
    result["decisions"] = growth.decisions
    accelerator.free_memory()
    return result


def some(rows: Any, count: int) -> Decoded:
    every = len(rows) // count  # the file is sorted by class
    return Decoded(rows.images[::every], rows.labels[::every])


def run(method: str, seed: int, data: Data | None, options: argparse.Namespace) -> Data:
    """Train one method and write its file; returns the data, to be used again."""
    steps = options.steps
    if method == "full_short":
        spent = [mean(result["flops"] for result in load(other, options.folder)) for other in ("fixed", "full")]
        steps = round(steps * spent[0] / spent[1])
    args = arguments(method, seed, steps, options.data_dir, options.extra)
    # The same split for all methods and seeds; what a search sets aside trains nobody.
    data = data or load_data(
        dataclasses.replace(args, train=dataclasses.replace(args.train, seed=0)), multiple=4, hold_out=True
    )
    result = {"method": method, **facts(seed), **train(args, data)}
    options.folder.mkdir(parents=True, exist_ok=True)
    path(options.folder, method, seed).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    final = {name: round(values["accuracy"], 4) for name, values in result["final"].items()}
    print(f"{method} seed {seed}: {final}, {result['cpu_seconds']:.1f} CPU s, {result['flops']:.3g} FLOPs", flush=True)
    return data


def path(folder: Path, method: str, seed: int) -> Path:
    return folder / f"{method}_{seed}.json"


def load(method: str, folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{method}_[0-9].json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def summary(method: str, folder: Path, full: dict[str, float]) -> dict[str, float]:
    """Means over seeds: accuracy in percent, deviation, and cost relative to full."""
    results, kind = load(method, folder), "averaged"
    accuracy = [100 * result["final"][kind]["accuracy"] for result in results]
    online = [100 * result["final"]["online"]["accuracy"] for result in results]
    row = {"seeds": len(results), "accuracy": mean(accuracy), "deviation": pstdev(accuracy), "online": mean(online)}
    for name in ("cpu_seconds", "flops"):
        row[name] = full[name] / mean(result[name] for result in results)
    return row


def ordinary_cost(accuracy: float, rows: dict[str, dict[str, Any]], key: str) -> float:
    """What ordinary training costs to the same accuracy, relative to `full`.

    Log-linear in the cost through its two fully decayed lengths, `full_short` and `full`; what lies outside of them is
    extrapolated. Not the first crossing of a curve: that would credit noise, and models that are not yet whole.
    """
    short, whole = rows["full_short"], rows["full"]
    slope = (whole["accuracy"] - short["accuracy"]) / math.log(short[key])
    return math.exp((accuracy - whole["accuracy"]) / slope)


def report(folder: Path) -> None:
    """Print the table of what is there, write summary.json and draw the plot."""
    whole = load("full", folder)
    full = {name: mean(result[name] for result in whole) for name in ("cpu_seconds", "flops")}
    rows: dict[str, dict[str, Any]] = {
        method: dict(summary(method, folder, full)) for method in (*METHODS, *ABLATIONS) if load(method, folder)
    }
    print(f"{'method':23} seeds  accuracy          online  speed-up: CPU  FLOPs  at equal accuracy: CPU  FLOPs")
    for method, row in rows.items():
        for key in ("cpu_seconds", "flops") if "full_short" in rows else ():
            row[f"equal_accuracy_{key}"] = row[key] * ordinary_cost(row["accuracy"], rows, key)
        equal = [f"{row.get(f'equal_accuracy_{key}', math.nan):.2f}" for key in ("cpu_seconds", "flops")]
        print(
            f"{method:23} {row['seeds']:5}  {row['accuracy']:5.1f} % +- {row['deviation']:3.1f} {row['online']:5.1f} %"
            f"  {row['cpu_seconds']:13.2f}  {row['flops']:5.2f}  {equal[0]:>22}  {equal[1]:>5}"
        )
    table = [{"method": method, **row} for method, row in rows.items()]
    (folder / "summary.json").write_text(json.dumps({"rows": table}, indent=1) + "\n", encoding="utf-8")
    draw(folder, [method for method in METHODS if method in rows])


def draw(folder: Path, methods: list[str]) -> None:
    """Accuracy against CPU time and FLOPs: curves of every seed, the end as a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=110)
    for axis, (key, unit) in zip(figure.subplots(1, 2, sharey=True), (("cpu_seconds", 1), ("flops", 1e12))):
        for index, method in enumerate(methods):
            for seed, result in enumerate(load(method, folder)):
                end = {**result, "accuracy": result["final"]["averaged"]["accuracy"]}
                points = [(p[key] / unit, 100 * p["accuracy"]) for p in (*result["curve"], end)]
                label = method if seed == 0 else None
                axis.plot(*zip(*points), color=f"C{index}", linewidth=0.8, alpha=0.6)
                axis.plot(*points[-1], "o", color=f"C{index}", markersize=5, label=label)
        axis.set(
            xlabel={"cpu_seconds": "CPU seconds of training and search", "flops": "TFLOPs of training steps"}[key]
        )
        axis.grid(alpha=0.3)
        if key == "cpu_seconds":
            axis.set(ylabel="test accuracy of the averaged weights (%)")
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS, *ABLATIONS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--report", action="store_true")
    options, options.extra = parser.parse_known_args()
    torch.set_num_threads(1)
    data = None
    for seed in options.seeds if not options.report else ():
        for method in options.methods:
            if not path(options.folder, method, seed).exists():
                data = run(method, seed, data, options)
    if load("full", options.folder):
        report(options.folder)


if __name__ == "__main__":
    main()
