"""`ViTTrainer` and `ViTScript`: training on labelled images, with staged augmentation and validation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import Tensor, nn

from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.growth import GrowthPlan
from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.training.build import make_accelerator
from autoprog_diffusion.training.run import Script
from autoprog_diffusion.training.sharded import refuse_sharding
from autoprog_diffusion.training.trainer import Trainer

from ..drop_path import set_drop_path
from ..models import logits, save_model
from .arguments import SharedArguments
from .augment import Augment, normalised
from .clock import BY_COST, share_of_cost
from .data import Batch, Decoded, epoch_batches, make_loader
from .loading import Data
from .regularisation import Strength, strengths
from .schedule import make_optimizer, make_schedule, warmup_steps


if TYPE_CHECKING:
    from accelerate import Accelerator

AnyArguments = TypeVar("AnyArguments", bound=SharedArguments)


class ViTTrainer(Trainer):
    """Trains an image classifier; subclasses prepare its growth.

    Args:
        model: The bare model of full depth.
        growth: Its growth object, not yet prepared.
        data: Images and labels.
        args: Arguments of the script.
        accelerator: The run's accelerator.
        image_size: Side of the images in the last stage, in pixels.
        drop_path: Rate of stochastic depth of the last block, in the last stage.
        plan: Stages to follow, where the growth object takes a plan.

    Raises:
        GrowthError: There are fewer images than a batch, the run is too short, or an object is in the wrong state.
    """

    lr_flag = "--lr"
    frozen_blocks_run: bool = True  # whether blocks that do not train run forward

    def __init__(
        self,
        model: nn.Module,
        growth: Growth,
        data: Data,
        args: SharedArguments,
        accelerator: Accelerator,
        *,
        image_size: int,
        drop_path: float = 0.0,
        plan: GrowthPlan | None = None,
    ) -> None:
        train = args.train
        set_seed(train.seed, device_specific=True)  # the weights were drawn alike on every rank, augmentation is not
        super().__init__(
            model,
            growth,
            accelerator,
            output=args.output,
            resolution=image_size,
            accumulation=train.grad_accum_steps,
            max_norm=train.clip_grad,
        )
        self.data = data
        self.identity = data.identity
        self.data_report = data.report
        self.args = args
        self._plan = plan
        images_a_batch = train.batch_size * accelerator.num_processes
        self.epoch_batches = len(data.train) // images_a_batch
        if not self.epoch_batches:
            raise DataError(
                f"--batch_size {train.batch_size} on {accelerator.num_processes} processes is more than the "
                f"{len(data.train)} training images: use a smaller one."
            )
        self.max_steps = train.max_train_steps or train.epochs * self.epoch_steps
        flag = "warmup_epochs" if train.warmup_steps is None else "warmup_steps"
        self.check_lengths(flag, warmup_steps(train, self.epoch_steps), args.given)
        optimizer = make_optimizer(model, train)
        self.lr_scheduler = make_schedule(optimizer, train, self.decayed, self.epoch_steps)
        if train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        # Images that do not fit into memory are cropped where they are decoded.
        crop = isinstance(data.train, Decoded)
        self._augment = Augment(args.augment, len(data.classes), train.smoothing, crop=crop)
        self.prepare_growth()
        self._drop_path = drop_path
        accelerator.register_for_checkpointing(self.lr_scheduler)
        accelerator.register_for_checkpointing(self.metrics)

    @abstractmethod
    def prepare_growth(self) -> None:
        """Call `growth.prepare`, with the arguments that it needs."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Let the model hold its averaged weights inside a `with` block."""

    def decayed(self, step: int) -> float:
        """Share of the learning rate's decay that has passed before an optimizer step, from 0 to 1."""
        if self.args.train.sched != BY_COST:
            return min(step / self.max_steps, 1.0)
        # The schedule is made before the plan.
        return step and share_of_cost(self.growth.plan, step, frozen_blocks_run=self.frozen_blocks_run)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        images = self.growth.resize(self._floats(images))
        images, targets = self._augment(images, labels.to(images.device), self._strength)
        if self.args.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(logits(model, images), targets)

    def batches(self) -> Iterator[Batch]:
        train = self.args.train
        rows = self.data.train
        epoch, done = self.position()
        while True:
            rows.epoch = epoch
            sampler = epoch_batches(
                len(rows),
                batch=train.batch_size,
                seed=train.seed,
                epoch=epoch,
                start=done,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
            )
            yield from make_loader(rows, sampler, self.args.data.workers)
            epoch += 1
            done = 0

    def enter_stage(self) -> None:
        """Set stochastic depth and the size of the decoded images."""
        set_drop_path(self.bare, self._strength.drop_path)
        # A supernet draws another resolution in every step, so its images come at full size.
        size = self._resolution if self.growth.searching else self.pixels
        if self.data.train.size != size:
            self.data.train.resize(size)
        self._batches = self.batches()  # those that a loader has fetched ahead have the old size

    def average(self) -> None:
        """Do nothing: the growth object averages."""

    def validate(self) -> dict[str, float]:
        """Evaluate raw and averaged weights, once per step, and keep the result with the cost of training so far."""
        done = self.metrics.validations
        if done and done[-1]["step"] == self.step:
            return done[-1]
        row = {"step": float(self.step), **self.evaluate(averaged=False)}
        for name, value in self.evaluate(averaged=True).items():
            row[f"ema_{name}"] = value
        row["blocks"] = float(self.blocks)
        for name in ("seconds", "cpu_seconds", "flops"):
            row[name] = self.metrics.total(name)
        done.append(row)
        values = {f"validation/{name}": value for name, value in row.items() if name != "step"}
        self.accelerator.log(values, step=self.step)
        return row

    def evaluate(self, *, averaged: bool) -> dict[str, float]:
        """Loss and accuracy of the model as it is on all validation images, at the resolution of the stage.

        Args:
            averaged: Whether to evaluate the averaged weights.

        Returns:
            `loss` and `accuracy`, in [0, 1], over all processes.
        """
        val = self.data.val
        batches = torch.arange(len(val)).split(self.args.train.batch_size)
        # No rank waits for another in the loop: each adds up its own batches.
        mine = batches[self.accelerator.process_index :: self.accelerator.num_processes]
        sampler = [rows.tolist() for rows in mine]
        loader = make_loader(val, sampler, self.args.data.workers)
        sums = torch.zeros(3, dtype=torch.float64)
        was_training = self.bare.training
        weights = self.averaged() if averaged else nullcontext()
        with torch.no_grad(), weights:
            self.bare.eval()
            for images, labels in loader:
                pixels = self.growth.resize(self._floats(images))
                output = logits(self.bare, normalised(pixels)).float()
                labels = labels.to(output.device)
                loss = F.cross_entropy(output, labels, reduction="sum")
                right = (output.argmax(1) == labels).sum()
                sums += torch.tensor([len(labels), float(loss), right])
        self.bare.train(was_training)
        on_device = sums.float().to(self.accelerator.device)
        total = self.accelerator.reduce(on_device, reduction="sum")
        count, loss, right = total.tolist()  # type: ignore[union-attr]
        return {"loss": loss / count, "accuracy": right / count}

    def finish(self) -> None:
        """Validate, and leave a plain model of full depth."""
        self.validate()
        super().finish()

    @property
    def _strength(self) -> Strength:
        """How much to regularise now; a search runs at full strength."""
        # The plan of a run that is resumed may have another number of stages.
        levels = strengths(self.args.augment, self._drop_path, len(self.growth.plan.stages))
        return levels[-1 if self.growth.searching else self.growth.stage]

    def _floats(self, images: Tensor) -> Tensor:
        return images.to(self.accelerator.device, non_blocking=True).float() / 255


class ViTScript(Script[AnyArguments, ViTTrainer]):
    """One way of training a vision transformer."""

    def make_accelerator(self, args: AnyArguments) -> Accelerator:
        train = args.train
        accelerator = make_accelerator(
            args.output,
            accumulation=train.grad_accum_steps,
            mixed_precision=train.mixed_precision,
            seed=train.seed,
        )
        refuse_sharding(accelerator)
        return accelerator

    def save(self, trainer: ViTTrainer, output: Path) -> None:
        """Write the model, with averaged weights if they are asked for, and the names of its classes."""
        weights = trainer.averaged() if trainer.args.train.model_ema else nullcontext()
        with weights:
            self.save_model(trainer.bare, output, trainer.data.classes)

    def save_model(self, model: nn.Module, output: Path, classes: tuple[str, ...]) -> None:
        """Write a checkpoint of the model's own library."""
        save_model(model, output, labels=classes)
