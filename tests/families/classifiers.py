"""Vision transformers of transformers and timm. The rows of timm are there where timm is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .family import Family, lists, noise, seeded


@dataclass(frozen=True)
class Classifier(Family):
    """A vision transformer: an image in, logits out. It has no timestep, so a stage embedding has no place in it."""

    points: int = 0

    def output(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        output = model(**inputs)
        return output if isinstance(output, Tensor) else output.logits

    def checkpoint(self, model: nn.Module) -> bool:
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        else:
            model.set_grad_checkpointing()
        return True

    def save(self, model: nn.Module, folder: Path) -> None:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
        else:
            from timm.models import save_for_hf

            save_for_hf(model, folder, safe_serialization=True)


def _images(name: str) -> Callable[[int, int], dict[str, Any]]:
    return lambda seed, batch: {name: noise(seed)(batch, 3, 16, 16)}


def _transformers(kind: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            hidden_size=16,
            num_hidden_layers=6,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            num_labels=5,
        )
        return getattr(transformers, f"{kind}ForImageClassification")(config)

    return seeded(build)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        sizes = {"depth": 6, "embed_dim": 16, "num_heads": 2, "patch_size": 8, "img_size": 16}
        return timm.create_model(name, num_classes=5, **sizes, **options)

    return seeded(build)


def _volo() -> nn.Module:
    from timm.models.volo import VOLO

    model = VOLO(
        layers=(2, 2, 1, 1),
        img_size=16,
        num_classes=5,
        embed_dims=(16, 16, 16, 16),
        num_heads=(2, 2, 2, 2),
        stem_hidden_dim=8,
    )
    model.pretrained_cfg = {}  # as every model of timm's factory has; the factory builds VOLO in its own sizes only
    return model


VOLO_BLOCKS = ("network.0.0", "network.0.1", "network.1", "network.2.0", "network.2.1", "network.3.0", "network.4.0")
ROWS: list[Family] = [
    Classifier("hf_vit", _transformers("ViT"), _images("pixel_values"), lists(**{"vit.layers": 6})),
    Classifier("hf_deit", _transformers("DeiT"), _images("pixel_values"), lists(**{"deit.layers": 6})),
]
if importlib.util.find_spec("timm"):
    ROWS += [
        Classifier("timm_deit", _timm("deit_tiny_patch16_224"), _images("x"), lists(blocks=6)),
        # Its layer scales begin at 1e-6, where the blocks do next to nothing.
        Classifier("timm_deit3", _timm("deit3_small_patch16_224", init_values=0.5), _images("x"), lists(blocks=6)),
        Classifier("timm_distilled", _timm("deit_tiny_distilled_patch16_224"), _images("x"), lists(blocks=6)),
        Classifier("timm_eva", _timm("eva02_tiny_patch14_224"), _images("x"), lists(blocks=6)),
        Classifier(
            "timm_volo",
            seeded(_volo),
            _images("x"),
            (*VOLO_BLOCKS, "post_network.0", "post_network.1"),
            reloads=False,
        ),
    ]
