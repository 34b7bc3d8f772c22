"""Pretrains the two tiny transformers in ``recipes/assets`` from scratch, on the latents of tiny_sd's VAE.

``--model dit`` is a class-conditional DiT on sixteen groups of Twemoji, ``--model flow`` an SD3 transformer trained by
rectified flow on all Twemoji and their captions. Neither sees OpenMoji, nor does the DiT see the classes it is
fine-tuned to. The commands (one core each; they save their state every few minutes and go on from it)::

    pip install -e ".[emoji]"
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
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.training_utils import EMAModel
from PIL import Image
from pretrain_tiny_sd import (
    MAX_TOKENS,
    PROMPTS,
    SIZE,
    Clock,
    Muon,
    batch_indices,
    encode,
    learning_rate,
    load_images,
    load_state,
    retrieval,
    sample,
    save_state,
    set_rate,
    ticks,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from autoprog_diffusion.tasks.tiny_pipelines import LABELS_FILE, flow_pipeline
from autoprog_diffusion.data.emoji import emoji_classes


ASSETS = Path(__file__).parents[1]


class Data:
    """Cached posteriors of the images (N, 4, 16, 16) and what conditions them."""

    def __init__(self, images: Tensor, conditions: tuple[Tensor, ...], names: list[str]) -> None:
        vae = AutoencoderKL.from_pretrained(ASSETS / "tiny_sd" / "vae").eval()
        self.mean, self.std = encode(vae, images)
        self.conditions, self.names = conditions, names

    def __len__(self) -> int:
        return len(self.mean)

    def latents(self, index: Tensor) -> Tensor:
        return self.mean[index] + self.std[index] * torch.randn_like(self.mean[index])


# -------------------------------------------------------------------------------------------------------------- DiT


def build_dit(classes: int) -> DiTTransformer2DModel:
    """Builds a DiT of 2.8 M parameters: 64 tokens of width 128, 8 blocks, zero-initialised as the paper has it."""
    model = DiTTransformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=8,
        num_embeds_ada_norm=classes,
    )
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
        # Diffusers drops the label in every block by a draw of its own; here it is dropped once for all of them.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    zero_output(model.proj_out_1, model.proj_out_2)
    return model


def zero_output(*layers: nn.Linear) -> None:
    """Starts the output head at zero."""
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def dit_data() -> Data:
    """Twemoji of the pretrained classes and their labels."""
    data = emoji_classes("twemoji", "pretrained", size=SIZE)
    images = torch.from_numpy(np.stack([np.asarray(image) for image in data["image"]])).permute(0, 3, 1, 2)
    return Data(images, (torch.tensor(data["label"]),), data.features["label"].names)


def dit_scheduler() -> DDIMScheduler:
    """The schedule of tiny_sd: v-prediction, zero terminal SNR."""
    return DDIMScheduler.from_pretrained(ASSETS / "tiny_sd" / "scheduler")


def dit_loss(model: nn.Module, latents: Tensor, labels: Tensor, classes: int, scheduler: DDIMScheduler) -> Tensor:
    """Returns the unweighted v-prediction loss, labels dropped for 10 %."""
    labels = torch.where(torch.rand(len(labels)) < 0.1, classes, labels)
    noise, steps = torch.randn_like(latents), scheduler.config.num_train_timesteps
    timesteps = (stratified(len(latents)) * steps).long()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    output = model(noisy, timestep=timesteps, class_labels=labels, return_dict=False)[0]
    return F.mse_loss(output.float(), scheduler.get_velocity(latents, noise, timesteps))


def stratified(count: int) -> Tensor:
    """Returns one uniform number from each of ``count`` equal ranges, shuffled: less variance than free draws."""
    return ((torch.arange(count) + torch.rand(count)) / count)[torch.randperm(count)]


def dit_pipeline(model: DiTTransformer2DModel, names: list[str]) -> DiTPipeline:
    """Assembles the pipeline; labels by name."""
    vae = AutoencoderKL.from_pretrained(ASSETS / "tiny_sd" / "vae")
    return DiTPipeline(transformer=model, vae=vae, scheduler=dit_scheduler(), id2label=dict(enumerate(names)))


def draw_classes(model: DiTTransformer2DModel, names: list[str], columns: int) -> np.ndarray:
    """Draws ``columns`` pictures of every class, guidance 3: (classes, columns, height, width, 3) in 0..1."""
    # DiTPipeline's unconditional label is 1000 whatever the model: put it where it asks for it.
    pad_tables(model)
    pipeline = dit_pipeline(model, names)
    pipeline.set_progress_bar_config(disable=True)
    labels = [label for label in range(len(names)) for _ in range(columns)]
    generator = torch.Generator().manual_seed(0)
    output = pipeline(labels, guidance_scale=3.0, num_inference_steps=25, generator=generator, output_type="np")
    return output.images.reshape(len(names), columns, *output.images.shape[1:])


def dit_sheet(images: np.ndarray, path: Path) -> None:
    """Saves what ``draw_classes`` drew, a row per class in two halves, magnified twice."""
    rows = [np.concatenate(list(row), axis=1) for row in images]
    half = (len(rows) + 1) // 2
    blank = [np.ones_like(rows[0])] * (2 * half - len(rows))
    save_image(np.concatenate([np.concatenate(part) for part in (rows[:half], rows[half:] + blank)], axis=1), path)


def agreement(images: np.ndarray) -> float:
    """Share of drawn pictures whose nearest Twemoji, by squared pixel distance, is of the class that was asked for."""
    data = emoji_classes("twemoji", "pretrained", size=SIZE // 4)
    reference = torch.from_numpy(np.stack([np.asarray(image) for image in data["image"]])).float().flatten(1) / 255
    drawn = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2).float()
    drawn = F.avg_pool2d(drawn, 4).permute(0, 2, 3, 1).flatten(1)
    found = torch.tensor(data["label"])[torch.cdist(drawn, reference).argmin(1)].view(images.shape[:2])
    return (found == torch.arange(len(images))[:, None]).float().mean().item()


def pad_tables(model: DiTTransformer2DModel, null: int = 1000) -> None:
    """Repeats every label table's last row up to row ``null``."""
    for block in model.transformer_blocks:
        table = block.norm1.emb.class_embedder.embedding_table
        rows = table.weight.detach()
        last = rows[-1:].expand(null + 1 - len(rows), -1)
        table.weight = nn.Parameter(torch.cat([rows, last]))


# ------------------------------------------------------------------------------------------------------------- flow


def build_flow(width: int = 128, layers: int = 6) -> SD3Transformer2DModel:
    """Builds an SD3 transformer of 3.5 M parameters: 64 image and 16 text tokens of width 128, 6 joint blocks."""
    model = SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=256,  # both text encoders side by side
        caption_projection_dim=width,
        pooled_projection_dim=256,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for block in model.transformer_blocks:
        zero_output(block.norm1.linear, block.norm1_context.linear)
    zero_output(model.norm_out.linear, model.proj_out)
    return model


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow without a shift."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def flow_data() -> Data:
    """All Twemoji; caption embeddings (N + 1, 16, 256) and pooled ones (N + 1, 256), the empty caption last."""
    images, captions = load_images("twemoji")
    pipeline = flow_pipeline(build_flow(), flow_scheduler(), ASSETS)
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            [*captions, ""], None, None, max_sequence_length=MAX_TOKENS, do_classifier_free_guidance=False
        )
    return Data(images, (torch.arange(len(captions)), tokens[:, :MAX_TOKENS], pooled), captions)


def flow_loss(model: nn.Module, latents: Tensor, rows: Tensor, tokens: Tensor, pooled: Tensor, fill: int) -> Tensor:
    """Returns the rectified-flow loss at logit-normal times, captions dropped for 10 %.

    ``fill`` zero tokens follow the caption: of the empty third text encoder the pipeline takes 256 by itself.
    """
    rows = torch.where(torch.rand(len(rows)) < 0.1, len(tokens) - 1, rows)
    text = F.pad(tokens[rows], (0, 0, 0, fill))
    noise, sigmas = torch.randn_like(latents), torch.sigmoid(torch.special.ndtri(stratified(len(latents))))
    mix = sigmas.view(-1, 1, 1, 1)
    noisy = (1 - mix) * latents + mix * noise
    output = model(
        noisy, timestep=1000 * sigmas, encoder_hidden_states=text, pooled_projections=pooled[rows], return_dict=False
    )[0]
    return F.mse_loss(output.float(), noise - latents)


class QuickPipeline:
    """A StableDiffusion3Pipeline drawn with 16 tokens of its empty third text encoder instead of 256."""

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        self.pipeline.set_progress_bar_config(**kwargs)

    def __call__(self, prompts: list[str], **kwargs: Any) -> Any:
        return self.pipeline(prompts, max_sequence_length=MAX_TOKENS, **kwargs)


def flow_sheet(
    model: SD3Transformer2DModel, prompts: tuple[str, ...], path: Path, quick: bool = True, columns: int = 8
) -> None:
    """Draws the prompts, guidance 3, magnified twice."""
    pipeline: Any = flow_pipeline(model, flow_scheduler(), ASSETS)
    images = sample(QuickPipeline(pipeline) if quick else pipeline, list(prompts))
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    save_image(np.concatenate(rows), path)


def save_image(image: np.ndarray, path: Path) -> None:
    """Saves an array of floats in 0..1, magnified twice."""
    sheet = Image.fromarray((image * 255).round().astype(np.uint8))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


# --------------------------------------------------------------------------------------------------------- training


class Task:
    """One of the two models: its data, its loss, its picture."""

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
        return flow_loss(model, latents, rows[index], tokens, pooled, fill)

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
    """Trains until the clock is up; leaves ``<model>_state.pt`` and, at every save, a picture of the average."""
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


# ----------------------------------------------------------------------------------------------------------- export


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
