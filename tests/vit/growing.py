"""Tiny vision transformers of both libraries that grow in the tests, and a training loop for them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth


NEEDS_TIMM = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm, the extra vit")
CLASSES = 5
VOLO_LAYERS = {8: (2, 2, 3, 1), 6: (2, 2, 2, 0), 4: (2, 2, 0, 0)}


def hf_vit(depth: int = 6) -> nn.Module:
    transformers = importlib.import_module("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=CLASSES)
    return transformers.ViTForImageClassification(config)


def hf_deit(depth: int = 6) -> nn.Module:
    transformers = importlib.import_module("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.DeiTConfig(**sizes, image_size=16, patch_size=4, num_labels=CLASSES)
    return transformers.DeiTForImageClassification(config)


def of_timm(name: str) -> Callable[..., nn.Module]:
    def build(depth: int = 6) -> nn.Module:
        timm = importlib.import_module("timm")
        sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2}
        return timm.create_model(name, depth=depth, num_classes=CLASSES, **sizes)

    return build


def volo(depth: int = 8) -> nn.Module:
    module = importlib.import_module("timm.models.volo")
    sizes = {"embed_dims": (8, 16, 16, 16), "num_heads": (2, 2, 2, 2), "stem_hidden_dim": 4, "patch_size": 8}
    return module._create_volo(
        "volo_d1_224", layers=VOLO_LAYERS[depth], img_size=64, num_classes=CLASSES, drop_path_rate=0.0, **sizes
    )


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "hf-vit": hf_vit,
    "hf-deit": hf_deit,
    "deit": of_timm("deit_tiny_patch16_224"),
    "deit-distilled": of_timm("deit_tiny_distilled_patch16_224"),
    "deit3-layerscale": of_timm("deit3_small_patch16_224"),
    "volo": volo,
}


def marks(name: str) -> Any:
    return () if name.startswith("hf") else NEEDS_TIMM


models = pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in BUILDERS])


def side(name: str) -> int:
    """Image side of the tiny models."""
    return 64 if name == "volo" else 16


def batch(seed: int, name: str = "hf-vit", count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, side(name), side(name), generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def output(model: nn.Module, images: Tensor) -> Tensor:
    """(N, classes), of any of the models, in any mode."""
    found = model(images)
    found = found[0] if isinstance(found, tuple) else getattr(found, "logits", found)
    return found


def loss_fn(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output(model, images), targets)


def start(
    model: nn.Module, config: ViTGrowthConfig, steps: int, name: str = "hf-vit", **options: Any
) -> tuple[ViTGrowth, torch.optim.Optimizer]:
    """A growth in stage 0 over AdamW, searching on two held-out batches."""
    growth = ViTGrowth(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    held_out = [batch(90, name), batch(91, name)]
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer, held_out=held_out, loss_fn=loss_fn, **options)
    return growth, optimizer


def one_step(
    model: nn.Module, growth: ViTGrowth, optimizer: torch.optim.Optimizer, step: int, name: str = "hf-vit"
) -> bool:
    images, targets = batch(step, name)
    loss_fn(model, growth.resize(images), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
    return growth.step()


def config(search: str, **options: Any) -> ViTGrowthConfig:
    return ViTGrowthConfig(**{"num_stages": 3, "search": search, "search_steps": 2, "evaluations": 2, **options})


def train(model: nn.Module, growth: ViTGrowth, optimizer: Any, steps: range) -> None:
    for step in steps:
        one_step(model, growth, optimizer, step)
