"""Time to accuracy of progressive ViT pretraining on Fashion-MNIST, against ordinary training, and what its parts do.

    python benchmarks/vit_growth/run.py --data_dir ../shared/data --seeds 0 1 2

trains a ViT of 12 blocks, width 64, patch 4, on 20,000 images of Fashion-MNIST at 24 pixels. `full` is ordinary
training for STEPS optimizer steps; `full_short` is ordinary training for as many FLOPs as `fixed` takes; all others
grow, for STEPS steps. Every run has its own fully decayed learning rate and ends in the whole model at full
resolution. One line per run in runs.jsonl; what is there is not run again. `--report` only prints the table and draws
the plot. Times are CPU seconds of a single-threaded process, steps and search included, validation left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from accuracy_cost import note_equal_accuracy
from common import DATA, Runs, facts, input_file, print_rows, save

from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth
from autoprog_diffusion.vit.models import build_model
from autoprog_diffusion.vit.training.arguments import Arguments, growth_config, parse
from autoprog_diffusion.vit.training.data import Decoded
from autoprog_diffusion.vit.training.loading import Data, load_data
from autoprog_diffusion.vit.training.pretraining import PretrainTrainer


STEPS = 240
COMMON = (
    "--model transformers:vit --model_kwargs num_hidden_layers 12 hidden_size 64 num_attention_heads 2 patch_size 4 "
    "--img_size 24 --batch_size 64 --lr 1e-3 --sched cosine --weight_decay 0.05 --warmup_steps 30 --min_lr 1e-5 "
    "--clip_grad 1.0 --smoothing 0.0 --crop pad --aa None --reprob 0 --mixup 0 --cutmix 0 --model_ema_decay 0.98 "
    "--max_train_samples 20000 --search_samples 256 --evaluations 3 --resolutions 12 16 20 24 --min_depth 0.5 "
    "--boundaries 0.3 0.6 0.8 --operator momentum"
)
METHODS = {
    "full": "--growth off",
    "fixed": "--search fixed",
    "full_short": "--growth off",
    "one_shot": "--search one_shot",
    "zero_shot": "--search zero_shot",
    "random": "--search random",
    "stacking": "--search fixed --operator stacking",
    "fixed_by_cost": "--search fixed --sched cosine_by_cost",
    "stacking_by_cost": "--search fixed --operator stacking --sched cosine_by_cost",
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
    files = [str(input_file(data_dir, f"fashion_{part}.parquet", "make_fashion.py")) for part in ("train", "test")]
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
    data = dataclasses.replace(data, held_out=held)
    trainer = PretrainTrainer(model, growth, data, args, accelerator, image_size=size)

    def spent() -> dict[str, float]:
        return {name: trainer.metrics.total(name) for name in ("cpu_seconds", "seconds", "flops")}

    def on_step(step: int) -> None:
        if step % CURVE_EVERY == 0 and step < trainer.max_steps and not growth.searching:
            trainer.data = dataclasses.replace(data, val=some(data.val, CURVE_IMAGES))
            shape = {"depth": growth.depth, "resolution": growth.resolution}
            curve.append({"step": step, **spent(), **shape, **trainer.evaluate(averaged=True)})

    trainer.train(on_step)
    trainer.data = dataclasses.replace(data, val=some(data.val, FINAL_IMAGES))
    final = {"averaged": trainer.evaluate(averaged=True), "online": trainer.evaluate(averaged=False)}
    trainer.finish()
    result = {"steps": trainer.max_steps, **spent(), "final": final, "curve": curve}
    result["stages"] = [dataclasses.asdict(row) for row in trainer.metrics.summaries()]
    result["decisions"] = growth.decisions
    accelerator.free_memory()
    return result


def some(rows: Any, count: int) -> Decoded:
    every = len(rows) // count
    return Decoded(rows.images[::every], rows.labels[::every])


def run(method: str, seed: int, data: Data | None, runs: Runs, options: argparse.Namespace) -> Data:
    """Train one method and add its line; returns the data, to be used again."""
    steps = options.steps
    if method == "full_short":
        spent = [mean(row["flops"] for row in runs.all(method=other)) for other in ("fixed", "full")]
        steps = round(steps * spent[0] / spent[1])
    args = arguments(method, seed, steps, options.data_dir, options.extra)
    # The same split for all methods and seeds; what a search sets aside trains nobody.
    data = data or load_data(
        dataclasses.replace(args, train=dataclasses.replace(args.train, seed=0)),
        size=args.model.img_size,
        held_out=args.growth.search_samples,
    )
    result = runs.add({"method": method, **facts(seed), **train(args, data)})
    print(f"{method} seed {seed}: {result['final']}, {result['cpu_seconds']:.1f} CPU s", flush=True)
    return data


def table(runs: Runs) -> list[dict[str, Any]]:
    """Means over seeds per method: accuracy in percent, deviation, and speed-up against full training."""
    full = {key: mean(row[key] for row in runs.all(method="full")) for key in ("cpu_seconds", "flops")}
    rows: dict[str, dict[str, Any]] = {}
    for method in (*METHODS, *ABLATIONS):
        found = runs.all(method=method)
        if not found:
            continue
        accuracy, online = ([100 * run["final"][kind]["accuracy"] for run in found] for kind in ("averaged", "online"))
        row: dict[str, Any] = {"method": method, "seeds": len(found), "accuracy": mean(accuracy)}
        row |= {"deviation": pstdev(accuracy), "online": mean(online)}
        row |= {key: full[key] / mean(run[key] for run in found) for key in full}
        rows[method] = row
    note_equal_accuracy(rows.values(), full, whole=rows.get("full"), short=rows.get("full_short"))
    return list(rows.values())


def draw(runs: Runs, path: Path) -> None:
    """Accuracy against CPU time and FLOPs: curves of every seed, the end as a dot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=110)
    for axis, (key, unit) in zip(figure.subplots(1, 2, sharey=True), (("cpu_seconds", 1), ("flops", 1e12))):
        for index, method in enumerate(METHODS):
            for seed, result in enumerate(runs.all(method=method)):
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
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=DATA)
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[*METHODS, *ABLATIONS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of runs.jsonl and summary.json")
    parser.add_argument("--report", action="store_true")
    options, options.extra = parser.parse_known_args()
    torch.set_num_threads(1)
    runs, data = Runs(options.folder / "runs.jsonl"), None
    for method, seed in [] if options.report else runs.missing(options.methods, options.seeds):
        data = run(method, seed, data, runs, options)
    if runs.all(method="full"):
        rows = table(runs)
        print_rows("time to accuracy; costs are speed-ups against full", rows)
        save(options.folder / "summary.json", {"rows": rows})
        draw(runs, options.folder / "plot.png")


if __name__ == "__main__":
    main()
