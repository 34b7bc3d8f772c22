"""Bytes, FLOPs and memory of every stage against full fine-tuning, and a simulated scaling curve to 1,024 GPUs.

    python benchmarks/scaling/run.py
    python benchmarks/scaling/run.py --page   # only docs/scale.md and the plot, from summary.json

SDXL, SD3 medium, Flux dev and DiT-XL/2 at their published size on the meta device: what a stage trains is what
`GrowthScheduler` leaves trainable, FLOPs are PyTorch's exact count. The formula of the bytes is compared with what two
real gloo processes send, for tiny models of the same classes. Writes the tables of docs/scale.md as well. The step
times of the curve are counted FLOPs over an assumed utilisation: no GPU takes part. About 3 minutes on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, load, save
from models import MODELS, Published
from page import MEMORY, compute_ms, tables, write_page
from simulate import BF16, Cluster, assumptions, curve
from traffic import FP32, Step, stages


HERE = Path(__file__).parent
ORDERS = ("interleaved", "suffix")
LINES = (("grown, suffix", "suffix"), ("grown, interleaved", "interleaved"), ("full", "full"))
NODE, CHECK_RANKS = 8, 2


def describe(step: Step, full: Step) -> dict[str, Any]:
    """A stage as plain numbers; bytes sent are per GPU of one node of 8."""
    flops = step.forward + step.backward
    return {
        "trained": step.trained(),
        "all_reduced_bytes": step.all_reduced(),
        "buffer_bytes": step.buffers,
        "ddp_sent_bytes": round(step.sent_by_ddp(NODE)),
        "fsdp2_sent_bytes": round(step.sent_by_fsdp(NODE, BF16)),
        "ddp_state_bytes": step.state(),
        "fsdp2_state_bytes": step.state(NODE),
        "forward_flops": step.forward,
        "backward_flops": step.backward,
        "compute": flops / (full.forward + full.backward),
    }


def measure(published: Published, cluster: Cluster) -> dict[str, Any]:
    """All numbers of one model."""
    runs = {order: list(stages(published, order)) for order in ORDERS}
    # The last stage of either order trains the whole model; full fine-tuning has no stage embedding.
    runs["full"] = [dataclasses.replace(runs["suffix"][-1], embedding=0)]
    full = runs["full"][0]
    return {
        "model": published.name,
        "class": published.cls,
        "parameters": full.total(),
        "pixels": published.pixels,
        "batch_per_gpu": published.batch,
        "fsdp_transformer_layer_cls_to_wrap": list(published.wrap),
        "runs": {name: [describe(step, full) for step in run] for name, run in runs.items()},
        "scaling_ms": {
            backend: {name: curve(run, published.batch, backend, cluster) for name, run in runs.items()}
            for backend in ("DDP", "FSDP2")
        },
    }


def expect(published: Published, order: str, backend: str) -> list[dict[str, int]]:
    """What `two_ranks.py` should count."""
    found = []
    for step in stages(published, order, tiny=True):
        if backend == "DDP":
            found.append({"allreduce_": step.all_reduced()} | ({"broadcast_": step.buffers} if step.buffers else {}))
        else:
            forward, backward = step.gathered(CHECK_RANKS, FP32)
            scattered = sum(step.scattered(CHECK_RANKS, FP32))
            found.append({"_allgather_base_": sum(forward + backward), "_reduce_scatter_base_": scattered})
    return found


def check() -> list[dict[str, Any]]:
    """Real traffic of two processes beside the expected one, for tiny models."""
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(CHECK_RANKS)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([*command, folder], capture_output=True, text=True, timeout=600, env=environment)
        if done.returncode:
            raise SystemExit(f"two_ranks.py failed:\n{done.stderr[-4000:]}")
        rows = json.loads((Path(folder) / "two_ranks.json").read_text(encoding="utf-8"))
    models = {published.name: published for published in MODELS}
    for row in rows:
        row["expected"] = expect(models[row["model"]], row["order"], row["backend"])
        row["equal"] = row["expected"] == row["counted"]
    return rows


def draw(results: dict[str, Any]) -> None:
    """Speed per GPU over GPUs, against full fine-tuning that sends nothing."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), dpi=100, layout="constrained")
    rows = figure.subplots(2, len(results["models"]), sharex=True, sharey=True)
    for backend, axes in zip(("DDP", "FSDP2"), rows):
        for axis, model in zip(axes, results["models"]):
            draw_panel(axis, results, model, backend)
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(LINES), frameon=False)
    figure.supxlabel("GPUs")
    figure.supylabel("speed per GPU (full fine-tuning that sends nothing = 1)")
    figure.savefig(HERE / "plot.png")


def draw_panel(axis: Any, results: dict[str, Any], model: dict[str, Any], backend: str) -> None:
    """One model under one backend; where it does not fit, only the reason."""
    gpus, base = results["assumptions"]["gpus"], compute_ms(results["cluster"], model)
    axis.set(xscale="log", ylim=(0, 1.45), title=f"{model['model']}, {backend}")
    axis.set_xticks([8, 64, 1024], ["8", "64", "1024"])
    axis.minorticks_off()
    state = model["runs"]["full"][0][f"{backend.lower()}_state_bytes"]
    if state > MEMORY:
        axis.text(0.5, 0.5, f"{state / 1e9:.0f} GB of state:\ndoes not fit", transform=axis.transAxes, ha="center")
        return
    for index, (label, name) in enumerate(LINES):
        for kind, style in (("full overlap", "-"), ("no overlap", ":")):
            speeds = [base / ms for ms in model["scaling_ms"][backend][name][kind]["run"]]
            axis.plot(gpus, speeds, style, color=f"C{index}", label=f"{label}, {kind}")
    axis.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Traffic and simulated scaling of every stage.")
    parser.add_argument("--utilisation", type=float, default=Cluster.utilisation, help="of the GPU's peak FLOP/s")
    parser.add_argument("--page", action="store_true", help="measure nothing, only write the page and the plot")
    args = parser.parse_args()
    if not args.page:
        save(HERE / "summary.json", everything(Cluster(utilisation=args.utilisation)))
    results = load(HERE / "summary.json")
    write_page(results)
    draw(results)
    print(*tables(results).values(), sep="\n")


def everything(cluster: Cluster) -> dict[str, Any]:
    """Count, simulate and check; refuses where real processes sent something else."""
    models = [measure(published, cluster) for published in MODELS]
    results = {**facts(0), "cluster": dataclasses.asdict(cluster), "models": models, "checked": check()}
    results["assumptions"] = assumptions()
    wrong = [(row["model"], row["order"], row["backend"]) for row in results["checked"] if not row["equal"]]
    if wrong:
        raise SystemExit(f"two real processes sent other bytes than the formula says: {wrong}")
    return results


if __name__ == "__main__":
    main()
