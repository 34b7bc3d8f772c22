"""Pretrains the two tiny transformers in ``recipes/assets`` from scratch, on the latents of tiny_sd's VAE.

``--model dit`` is a class-conditional DiT on sixteen groups of Twemoji, ``--model flow`` an SD3 transformer trained by
rectified flow on all Twemoji and their captions. Neither sees OpenMoji, nor does the DiT see the classes it is
fine-tuned to. The commands (one core each; they save their state every few minutes and go on from it)::

    pip install -e .
    python recipes/assets/build/pretrain_tiny_transformers.py --model dit --steps 2000 --compile
    python recipes/assets/build/pretrain_tiny_transformers.py --model flow --steps 2200 --compile
    python recipes/assets/build/pretrain_tiny_transformers.py --model dit --export
    python recipes/assets/build/pretrain_tiny_transformers.py --model flow --export

An idle core of an AMD EPYC (AVX-512 with bfloat16) does about two steps a second of either; the bundled weights took
over an hour each on cores that other jobs kept busy. ``--compile`` needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cached_latents import ASSETS
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from diffusers.training_utils import EMAModel
from muon import Muon
from pictures import PROMPTS, retrieval
from sessions import Clock, batch_indices, learning_rate, load_state, save_state, set_rate, ticks
from tiny_dit import agreement, build_dit, dit_data, dit_loss, dit_scheduler, dit_sheet, draw_classes
from tiny_flow import QuickPipeline, build_flow, flow_data, flow_loss, flow_scheduler, flow_sheet
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from autoprog_diffusion.tasks.tiny_pipelines import LABELS_FILE, flow_pipeline


class Task:
    """One of the two models with its data, its loss and its contact sheet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.data = dit_data() if name == "dit" else flow_data()
        self.scheduler = dit_scheduler() if name == "dit" else None

    def build(self) -> Any:
        return build_dit(len(self.data.names)) if self.name == "dit" else build_flow()

    def loss(self, model: nn.Module, index: Tensor, fill: int) -> Tensor:
        latents = self.data.latents(index)
        if self.scheduler is not None:
            return dit_loss(model, latents, self.data.conditions[0][index], len(self.data.names), self.scheduler)
        rows, tokens, pooled = self.data.conditions
        return flow_loss(model, latents, rows[index], tokens, pooled, fill=fill)

    def sheet(self, model: Any, path: Path, columns: int) -> None:
        if self.name == "dit":
            dit_sheet(draw_classes(model, self.data.names, columns), path)
        else:
            flow_sheet(model, PROMPTS[: 4 * columns], path)


def matrix_groups(model: nn.Module) -> Muon:
    """Muon for the blocks' matrices, Adam for embeddings, vectors and the input and output layers."""
    optimizer = Muon(model)
    matrices = {
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name.startswith("transformer_blocks") and "embedding_table" not in name
    }
    everything = list(model.parameters())
    optimizer.param_groups[0]["params"] = [parameter for parameter in everything if parameter in matrices]
    optimizer.param_groups[1]["params"] = [parameter for parameter in everything if parameter not in matrices]
    return optimizer


def fill_of(name: str, step: int, progress: float) -> int:
    """Zero tokens after the caption: 256 as the pipeline has by itself, or few, in the last sixth of the training."""
    return (256, 0, 16, 0)[step % 4] if name == "flow" and progress > 5 / 6 else 0


def train(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Trains for the given time or steps; leaves ``<model>_state.pt`` and, at every save, a picture of the average."""
    torch.manual_seed(args.seed)
    task, path = Task(args.model), work / f"{args.model}_state.pt"
    model = task.build()
    optimizer = matrix_groups(model)
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    state = load_state(path)
    if state:
        model.load_state_dict(state["model"])
        ema.load_state_dict({**state["ema"], "decay": args.ema_decay})
        optimizer.load_state_dict(state["optimizer"])
    clock = Clock(args.minutes, args.steps, state.get("spent", 0.0))
    first, losses, saved = state.get("step", 0), list(state.get("losses", [])), time.monotonic()
    forward: Callable[..., Any] = torch.compile(model) if args.compile else model  # type: ignore[assignment]
    step = first - 1

    def save() -> None:
        tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
        save_state(path, **tensors, step=step + 1, losses=losses, spent=clock.spent())

    for step, progress in ticks(clock, first, args.model):
        torch.manual_seed(args.seed + step)
        set_rate(optimizer, learning_rate(args.lr, step, progress))
        index = batch_indices(step, args.batch_size, len(task.data), args.seed)
        # On CPU the math kernel is faster than the fused one at these short sequences.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss = task.loss(forward, index, fill_of(args.model, step, progress))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        losses.append(round(loss.item(), 5))
        if step % 100 == 0:
            tqdm.write(f"{args.model} step {step} ({clock.spent():.0f} s): loss {np.mean(losses[-100:]):.4f}")
        if time.monotonic() - saved > 60 * args.save_minutes:
            save()
            task.sheet(averaged(task.build(), model, ema), work / f"{args.model}.png", columns=2)
            saved = time.monotonic()
    save()
    return {
        "images": len(task.data),
        "steps": step + 1,
        "batch_size": args.batch_size,
        "seconds": round(clock.spent()),
        "mean_loss_per_500_steps": [round(float(np.mean(losses[i : i + 500])), 4) for i in range(0, len(losses), 500)],
        "last_100_loss": round(float(np.mean(losses[-100:])), 4),
    }


def averaged(target: Any, model: nn.Module, ema: EMAModel) -> Any:
    """Copies the average into ``target``, in evaluation mode."""
    target.load_state_dict(model.state_dict())
    ema.copy_to(target.parameters())
    return target.eval()


def export(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Writes the averaged weights as fp16 with their scheduler, and measures what was written."""
    state = load_state(work / f"{args.model}_state.pt")
    if not state:
        raise ValueError(f"--output_dir must hold a trained state, and {str(work)!r} does not: train first")
    task = Task(args.model)
    model, ema = task.build(), EMAModel(task.build().parameters())
    model.load_state_dict(state["model"])
    ema.load_state_dict(state["ema"])
    target = Path(args.export_dir) / f"tiny_{args.model}"
    shutil.rmtree(target / "transformer", ignore_errors=True)
    averaged(model, model, ema).half().save_pretrained(target / "transformer")
    (task.scheduler or flow_scheduler()).save_pretrained(target / "scheduler")
    if args.model == "dit":
        labels = {str(index): name for index, name in enumerate(task.data.names)}
        (target / LABELS_FILE).write_text(json.dumps(labels, indent=2) + "\n")
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)
    kind = DiTTransformer2DModel if args.model == "dit" else SD3Transformer2DModel
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    result: dict[str, Any] = {"steps": state["step"], "bytes": size}
    model = kind.from_pretrained(target / "transformer")
    if args.model == "dit":
        images = draw_classes(model, task.data.names, columns=16)
        dit_sheet(images[:, :8], work / "dit.png")
        result["agreement"] = agreement(images)
    else:
        flow_sheet(model, PROMPTS, work / "flow.png")
        flow_sheet(model, PROMPTS, work / "flow-256.png", quick=False)
        pipeline: Any = QuickPipeline(flow_pipeline(model, flow_scheduler(), ASSETS))
        result["retrieval"] = retrieval(pipeline)
    return result


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=("dit", "flow"), required=True)
    parser.add_argument("--export", action="store_true", help="write the weights instead of training")
    parser.add_argument("--output_dir", default="runs/pretrain", help="states, pictures, metrics")
    parser.add_argument("--export_dir", default=str(ASSETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save_minutes", type=float, default=4.0)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema_decay", type=float, default=0.995)
    parser.add_argument("--compile", action="store_true", help="a quarter faster, after a minute")
    return parser.parse_args()


def main() -> None:
    """Trains or exports, and keeps the numbers."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    work = Path(args.output_dir)
    work.mkdir(parents=True, exist_ok=True)
    kind = "export" if args.export else "train"
    metrics = (export if args.export else train)(args, work)
    (work / f"{args.model}_{kind}.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(kind, json.dumps(metrics))


if __name__ == "__main__":
    main()
