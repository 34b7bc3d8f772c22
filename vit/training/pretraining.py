"""Pretraining of `vit/pretrain.py`: a model that grows in depth and resolution, and a search of its shapes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import Tensor, nn

from autoprog_diffusion.command_line import Flag

from ..autoprog_one.scheduler import ViTGrowth
from ..models import build_model, logits, size_multiple
from .arguments import Arguments, growth_config, parse, preset_names
from .augment import Augment
from .data import Batch
from .loading import check_sizes, load_data
from .regularisation import strengths
from .trainer import ViTScript, ViTTrainer


if TYPE_CHECKING:
    from accelerate import Accelerator


class PretrainTrainer(ViTTrainer):
    """Trains a model whose depth, resolution or tokens grow."""

    growth: ViTGrowth
    frozen_blocks_run = False

    @property
    def blocks(self) -> int:
        """Number of blocks that the next step runs, also of a search's sub-network."""
        return self.growth.depth

    def prepare_growth(self) -> None:
        self.growth.prepare(
            self.model,
            num_training_steps=self.max_steps,
            held_out=self._held_out() or None,
            loss_fn=candidate_loss,
        )

    def averaged(self) -> AbstractContextManager[None]:
        return self.growth.averaged()

    def _held_out(self) -> list[Batch]:
        """This rank's batches for a search, at least two, cropped and augmented once at full strength, not mixed."""
        held = self.data.held_out
        train = self.args.train
        if held is None:
            return []
        settings = replace(self.args.augment, mixup=0.0, cutmix=0.0)
        augment = Augment(settings, len(self.data.classes), train.smoothing)
        strength = strengths(settings, 0.0, 1)[0]
        # Every rank evaluates other images.
        rank = self.accelerator.process_index
        world = self.accelerator.num_processes
        images = held.images[rank::world]
        labels = held.labels[rank::world]
        half = max(1, len(labels) // 2)
        size = min(train.batch_size, half)
        batches = []
        # The search draws nothing from the generator of the training.
        with torch.random.fork_rng():
            torch.manual_seed(train.seed)
            for pixels, classes in zip(images.split(size), labels.split(size)):
                batch = augment(pixels.float() / 255, classes, strength)
                batches.append(batch)
        return batches


class Pretraining(ViTScript[Arguments]):
    """`vit/pretrain.py`."""

    name = "vit"
    own_flags = (Flag("preset", choices=tuple(preset_names())),)

    def arguments(self) -> type:
        return Arguments

    def parse(self, argv: Sequence[str], description: str | None = None) -> Arguments:
        return parse(argv, description)

    def get_ready(self, args: Arguments, accelerator: Accelerator) -> PretrainTrainer:
        size = args.model.img_size
        config = growth_config(args)
        set_seed(args.train.seed)  # the same weights on every rank
        multiple = size_multiple(_build(args, 2))
        check_sizes(size, args.growth.resolutions or (), multiple)
        held_out = 0
        if config.search in ("one_shot", "zero_shot"):
            held_out = args.growth.search_samples
        data = load_data(args, size=size, held_out=held_out, accelerator=accelerator)
        set_seed(args.train.seed)
        model = _build(args, len(data.classes))
        growth = ViTGrowth(model, config, accelerator)
        drop_path = args.model.drop_path
        return PretrainTrainer(
            model,
            growth,
            data,
            args,
            accelerator,
            image_size=size,
            drop_path=drop_path,
        )


def candidate_loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Loss of a candidate on held-out images and soft targets."""
    return F.cross_entropy(logits(model, images), targets)


def _build(args: Arguments, num_classes: int) -> nn.Module:
    model = args.model
    return build_model(model.model, num_classes=num_classes, image_size=model.img_size, **model.model_kwargs)
