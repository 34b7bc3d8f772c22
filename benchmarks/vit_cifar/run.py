"""Time to accuracy of progressive ViT pretraining on CIFAR-10, in runs of thousands of steps.

    OMP_NUM_THREADS=1 python benchmarks/vit_cifar/run.py              # the runs that are missing, then the table
    python benchmarks/vit_cifar/run.py --time                         # the times of the steps, then the table
    python benchmarks/vit_cifar/run.py --table                        # the table of the runs that are there
    python benchmarks/vit_cifar/run.py --quick                        # a few steps, in a folder of their own

trains a ViT of 8 blocks, width 160, patch 8 (2.5 M parameters) on the 50,000 images for 20 epochs. `full` is ordinary
training, `full_short` the same for half as many epochs, `full_lower` the same at half the learning rate; all others
grow, `by_cost_lower` and `by_cost_higher` at half and twice the rate. Every run has its own fully decayed learning
rate and ends in the whole model at full resolution. A run that is cut goes on from its checkpoint. Accuracy is that of
the averaged weights on the 10,000 test images. Times are CPU seconds of one thread, steps and search included,
validation left out; the steps of all networks are timed side by side (step_times.py).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import DATA, Runs, check_names, facts, load, print_rows, save
from comparison import against_ordinary, costs, means
from methods import METHODS
from step_times import WHOLE, Network, measure, network_of

from autoprog_diffusion.training.run import run
from autoprog_diffusion.vit.training.arguments import Arguments, parse
from autoprog_diffusion.vit.training.pretraining import Pretraining


HERE = Path(__file__).parent
EPOCHS = 20
IMAGES = 50_000
BATCH = 128
QUICK_STEPS = 24
TIMED_STEPS = 30
ROUNDS = 3
TIMES = "step_times.json"
MODEL = (
    "--model transformers:vit --model_kwargs num_hidden_layers {0.blocks} hidden_size 160 num_attention_heads 4 "
    "patch_size {0.stride} --img_size {0.side}"
)
TRAINING = (
    f"--batch_size {BATCH} --sched cosine --weight_decay 0.05 --min_lr 1e-5 --clip_grad 1.0 --smoothing 0.0 "
    "--crop pad --aa None --reprob 0 --mixup 0 --cutmix 0 --model_ema_decay 0.998 --checkpoints_total_limit 1"
)
GROWTH = "--min_depth 0.5 --resolutions 16 16 24 32 --search_samples 512 --operator momentum"
FEW = "--max_train_samples 512 --search_samples 32 --val_fraction 0.01"


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        only: Names of methods; none for all.
        seeds: Seeds of every method, from 0 on.
        epochs: Of the full run.
        quick: A few steps on 512 images, validated on some of them, in a folder of their own.
        time: Time the steps of all networks of the runs that are there, then the table.
        table: Print the table of the runs that are there, and stop.
        results: Folder of runs.jsonl, summary.json and plot.png.
        state: Folder of the checkpoints of the run that goes on; removed when it has ended.
        data_dir: Folder of the two parquet files.
    """

    only: tuple[str, ...] = ()
    seeds: int = 1
    epochs: int = EPOCHS
    quick: bool = False
    time: bool = False
    table: bool = False
    results: Path = HERE
    state: Path = Path("runs/vit_cifar")
    data_dir: Path = DATA


def parquet(folder: Path, part: str) -> str:
    """The file of one part of CIFAR-10.

    Raises:
        SystemExit: It is not there; the message says what it holds.
    """
    path = folder / f"cifar10_{part}.parquet"
    if not path.is_file():
        raise SystemExit(
            f"there is no {path}: it holds CIFAR-10's pictures in a column `image` and their classes in `label`. "
            "Write it with `datasets`, from the set `uoft-cs/cifar10`, whose columns are `img` and `label`."
        )
    return str(path)


def arguments(name: str, seed: int, options: Options) -> Arguments:
    """Flags of one run of `vit/pretrain.py`."""
    method = METHODS[name]
    whole = QUICK_STEPS if options.quick else options.epochs * IMAGES / BATCH
    steps = round(method.share * whole)
    flags = f"{MODEL.format(WHOLE)} {TRAINING} {GROWTH} {method.flags} --lr {method.rate} --seed {seed}".split()
    flags += f"--max_train_steps {steps} --warmup_steps {steps // 20} --validation_steps {max(1, steps // 8)}".split()
    flags += ["--checkpointing_steps", str(max(1, steps // 24))]
    if options.quick:
        flags += [*FEW.split(), "--batch_size", "32"]
    flags += ["--train_data", parquet(options.data_dir, "train")]
    if not options.quick:
        flags += ["--val_data", parquet(options.data_dir, "test")]
    output = options.state / f"{name}_{seed}"
    args = parse([*flags, "--output_dir", str(output), "--resume_from_checkpoint", "latest"])
    if method.strides is not None:
        args = replace(args, growth=replace(args.growth, strides=method.strides))
    return args


def train(method: str, seed: int, options: Options) -> dict[str, Any]:
    """One run, as a row."""
    args = arguments(method, seed, options)
    trainer = run(Pretraining(), args)
    metrics = trainer.metrics
    row = {
        "method": method,
        **facts(seed),
        "steps": len(metrics),
        "cpu_seconds": metrics.total("cpu_seconds"),
        "flops": metrics.total("flops"),
        "accuracy": metrics.validations[-1]["ema_accuracy"],
        "online": metrics.validations[-1]["accuracy"],
        "parameters": sum(parameter.numel() for parameter in trainer.bare.parameters()),
        "curve": metrics.validations,
        "stages": [asdict(stage) for stage in metrics.summaries()],
        "decisions": trainer.growth.decisions,
    }
    shutil.rmtree(args.output.output_dir)
    return row


def step_times(network: Network, options: Options) -> list[float]:
    """CPU seconds of some steps of ordinary training of a network."""
    steps, batch = (4, 32) if options.quick else (TIMED_STEPS, BATCH)
    output = options.state / "times"
    flags = f"{MODEL.format(network)} {TRAINING} --growth off {FEW} --max_train_steps {steps} --warmup_steps 1"
    flags += f" --batch_size {batch}"
    data = ["--train_data", parquet(options.data_dir, "train"), "--output_dir", str(output)]
    trainer = run(Pretraining(), parse([*flags.split(), *data]))
    shutil.rmtree(output)
    return trainer.metrics.rows["cpu_seconds"]


def measured(runs: Runs, options: Options) -> dict[str, float]:
    """CPU seconds of a step of every network that the runs trained."""
    networks = {
        network_of(stage, METHODS[row["method"]].strides): None
        for row in runs.rows
        for stage in row["stages"]
        if not stage["searching"]
    }
    return measure(networks, partial(step_times, options=options), rounds=1 if options.quick else ROUNDS)


def times_of(runs: Runs) -> dict[str, float]:
    """CPU seconds of a step of every network, as they were measured."""
    return load(runs.path.parent / TIMES)["cpu_seconds"]


def table(runs: Runs) -> list[dict[str, Any]]:
    """Means over seeds per method: accuracy in percent, and what ordinary training needs for the same accuracy.

    Every run is set against the ordinary runs of its own seed and rate (`Method.ordinary`): `equal_accuracy` against
    runs with a rate that decays within them, `stopped` against the averaged weights of the long run, which one may
    stop. Times of steps lie beside the runs.
    """
    times = times_of(runs)
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for ordinary in runs.all(method="full"):
        mates = {row["method"]: row for row in runs.all(seed=ordinary["seed"])}
        for method, row in against_ordinary(mates, times).items():
            found[method].append(row)
    return [means(rows) for rows in found.values() if rows]


def draw(runs: Runs, path: Path) -> None:
    """Accuracy of the averaged weights against CPU time and FLOPs."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["tab20"]
    times = times_of(runs)
    figure = Figure(figsize=(11, 6), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    units = {"cpu_seconds": (60, "CPU minutes of training and search"), "flops": (1e15, "PFLOPs of training steps")}
    for axis, (key, (unit, label)) in zip(axes, units.items(), strict=True):
        for index, (method, settings) in enumerate(METHODS.items()):
            for seed, row in enumerate(runs.all(method=method)):
                scale = costs(row, times)[key] / row[key] / unit
                spent = [scale * point[key] for point in row["curve"]]
                accuracies = [100 * point["ema_accuracy"] for point in row["curve"]]
                name = f"{settings.words}, rate {settings.rate:g}" if seed == 0 else None
                axis.plot(spent, accuracies, color=colors(index), linewidth=0.8, alpha=0.6)
                axis.plot(spent[-1], accuracies[-1], "o", color=colors(index), markersize=5, label=name)
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="test accuracy of the averaged weights (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path)


def main(options: Options) -> None:
    """The runs that are missing, then the table and the plot."""
    check_names(options.only, METHODS)
    torch.set_num_threads(1)
    if options.quick and options.results == HERE:
        options = replace(options, results=options.state / "quick", state=options.state / "quick")
    runs = Runs(options.results / "runs.jsonl")
    done = options.table or options.time
    for method, seed in () if done else runs.missing(options.only or [*METHODS], range(options.seeds)):
        row = runs.add(train(method, seed, options))
        print(f"{method} seed {seed}: {100 * row['accuracy']:.2f} %, {row['cpu_seconds']:.0f} CPU s", flush=True)
    file = options.results / TIMES
    if not options.table or not file.is_file():
        save(file, {**facts(seed=0), "cpu_seconds": measured(runs, options)})
    if runs.all(method="full"):
        rows = table(runs)
        print_rows("time to accuracy; costs are speed-ups against full", rows)
        save(options.results / "summary.json", {"rows": rows})
        draw(runs, options.results / "plot.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
