"""`tiny_dit`: a class-conditional DiT on sixteen groups of Twemoji."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cached_latents import ASSETS, Data, stratified, zero_output
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from emoji_images import SIZE
from pictures import save_image
from torch import Tensor, nn

from autoprog_diffusion.data.emoji import emoji_classes


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


def dit_pipeline(model: DiTTransformer2DModel, names: list[str]) -> DiTPipeline:
    """Assembles the pipeline; labels by name."""
    vae = AutoencoderKL.from_pretrained(ASSETS / "tiny_sd" / "vae")
    return DiTPipeline(transformer=model, vae=vae, scheduler=dit_scheduler(), id2label=dict(enumerate(names)))


def pad_tables(model: DiTTransformer2DModel, null: int = 1000) -> None:
    """Repeats every label table's last row up to row ``null``."""
    for block in model.transformer_blocks:
        table = block.norm1.emb.class_embedder.embedding_table
        rows = table.weight.detach()
        last = rows[-1:].expand(null + 1 - len(rows), -1)
        table.weight = nn.Parameter(torch.cat([rows, last]))


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
