"""The pretraining loop: an ordinary one with the growth lines in it.

The model, what makes it grow, the data and the loss are arguments: `vit/asvit` trains other models in the same loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from autoprog_diffusion.data.images import DataError
from autoprog_diffusion.training.checkpoints import checkpoint_step, find_checkpoint
from autoprog_diffusion.training.guard import check_finite, write_checkpoint
from autoprog_diffusion.training.measure import counted_flops, peak_memory, synchronize

from ..drop_path import set_drop_path
from ..models import logits
from .arguments import Arguments
from .augment import Augment, normalised
from .data import Batch, Decoded, EpochBatches, make_loader
from .loading import Data
from .regularisation import Strength, strengths
from .runlog import RunLog
from .schedule import make_optimizer, make_schedule


if TYPE_CHECKING:
    from accelerate import Accelerator

Forward = Callable[[nn.Module, Tensor], Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]


class Trainer:
    """One run: the prepared objects and the number of steps done.

    Args:
        model: The bare model of full depth.
        growth: What makes it grow, not yet prepared (`ViTGrowth`, or another object with its methods).
        data: Images.
        args: All arguments.
        accelerator: Of the run.
        forward: Model and (N, 3, H, W) images -> (N, classes).
        criterion: (N, classes) outputs and soft targets -> the loss, a scalar.

    Raises:
        GrowthError: There are fewer images than a batch, the run is too short, or an object is in the wrong state.
    """

    def __init__(
        self,
        model: nn.Module,
        growth: Any,
        data: Data,
        args: Arguments,
        accelerator: Accelerator,
        *,
        forward: Forward = logits,
        criterion: Criterion = F.cross_entropy,
    ) -> None:
        self.args, self.accelerator, self.growth, self.data = args, accelerator, growth, data
        self.bare, self.log, self.step = model, RunLog(), 0
        self._forward, self._criterion = forward, criterion
        train = args.train
        self._batches_per_epoch = len(data.train) // (train.batch_size * accelerator.num_processes)
        if not self._batches_per_epoch:
            raise DataError(
                f"--batch_size {train.batch_size} on {accelerator.num_processes} processes is more than the "
                f"{len(data.train)} training images: use a smaller one."
            )
        per_epoch = max(1, self._batches_per_epoch // train.grad_accum_steps)
        self.max_steps = train.max_train_steps or train.epochs * per_epoch
        optimizer = make_optimizer(model, train)
        self.lr_schedule = make_schedule(optimizer, train, self.max_steps, per_epoch)
        if train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        cropped = isinstance(data.train, Decoded)
        self._augment = Augment(args.augment, len(data.classes), train.smoothing, crop=cropped)
        growth.prepare(
            self.model,
            num_training_steps=self.max_steps,
            held_out=self._held_out() or None,
            loss_fn=self._candidate_loss,
        )
        self._strengths = strengths(args.augment, args.model.drop_path, growth.num_stages)
        for state in (self.lr_schedule, self.log):
            accelerator.register_for_checkpointing(state)
        self.root = Path(args.output.output_dir) / "checkpoints"

    def resume(self, wanted: str) -> bool:
        """Load a checkpoint by name, or the newest complete one; returns whether there was one.

        Raises:
            StateError: It is not complete, or of another plan or model.
        """
        path = find_checkpoint(self.root, wanted)
        self.accelerator.wait_for_everyone()
        if path is None:
            return False
        self.accelerator.load_state(str(path))
        self.step = checkpoint_step(path)
        return True

    def train(self, on_step: Callable[[int], object] | None = None) -> None:
        """Train to the end, with a progress bar; `on_step(step)` is called after every optimizer step.

        Raises:
            TrainingError: The loss is not finite.
        """
        # The generators were restored by `resume`; getting ready must not move them.
        with torch.random.fork_rng():
            self._enter_shape()
        batches = self._batches()
        hidden = not self.accelerator.is_main_process
        with tqdm(total=self.max_steps, initial=self.step, desc="training", disable=hidden) as bar:
            with logging_redirect_tqdm():
                while self.step < self.max_steps:
                    if self._optimizer_step(batches, bar):
                        self._enter_shape()
                        batches = self._batches()
                    self._validate_and_save()
                    if on_step is not None:
                        on_step(self.step)

    def finish(self) -> None:
        """Leave a plain model of full depth, with averaged weights if they are asked for."""
        self.growth.fold(self.model)

    def validate(self, *, averaged: bool) -> dict[str, float]:
        """Loss and accuracy of the model as it is on all validation images, at the resolution of the stage.

        Args:
            averaged: Of the averaged weights.

        Returns:
            `loss` and `accuracy`, in [0, 1], over all processes.
        """
        val, sums = self.data.val, torch.zeros(3, dtype=torch.float64)
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size, was_training = self.args.train.batch_size, self.bare.training
        batches = [list(range(start, min(start + size, len(val)))) for start in range(0, len(val), size)]
        loader = make_loader(val, batches[rank::world], self.args.data.workers)
        with torch.no_grad(), self.growth.averaged() if averaged else nullcontext():
            self.bare.eval()
            for images, labels in loader:
                pixels = self.growth.resize(self._floats(images))
                output = self._forward(self.bare, normalised(pixels)).float()
                labels = labels.to(output.device)
                right = (output.argmax(1) == labels).sum()
                sums += torch.tensor([len(labels), float(F.cross_entropy(output, labels, reduction="sum")), right])
        self.bare.train(was_training)
        total = self.accelerator.reduce(sums.float().to(self.accelerator.device), reduction="sum")
        count, loss, right = total.tolist()  # type: ignore[union-attr]
        return {"loss": loss / count, "accuracy": right / count}

    def _optimizer_step(self, batches: Iterator[Batch], bar: tqdm) -> bool:
        accelerator, growth = self.accelerator, self.growth
        shape, stage, searching = (growth.depth, growth.resolution), growth.stage, growth.searching
        strength = self._strengths[-1 if searching else stage]
        started, losses, norm = self._clock(), [], None
        while True:
            batch = next(batches)
            key = f"{shape[0]}x{shape[1]}"
            if key not in self.log.flops:
                self.log.flops[key] = self._count_flops(batch, strength)
                started = self._clock()
            with accelerator.accumulate(self.model):
                loss = self._loss(self.model, batch, strength)
                accelerator.backward(loss)
                losses.append(loss.detach())
                if accelerator.sync_gradients and self.args.train.clip_grad is not None:
                    norm = accelerator.clip_grad_norm_(self.bare.parameters(), self.args.train.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if accelerator.sync_gradients:
                break
        self.lr_schedule.step()
        mean = float(accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))  # type: ignore[arg-type]
        self._check_finite("loss", mean)
        # A gradient scaler (fp16) skips such steps by itself.
        self._check_finite("gradient's norm", 0.0 if accelerator.scaler is not None or norm is None else float(norm))
        self.step += 1
        changed = growth.step()
        synchronize(accelerator.device)
        wall, cpu = (now - then for now, then in zip(self._clock(), started))
        self._report(mean, (wall, cpu), shape, stage, searching, bar)
        return changed

    def _loss(self, model: nn.Module, batch: Batch, strength: Strength) -> Tensor:
        images = self.growth.resize(self._floats(batch[0]))
        images, targets = self._augment(images, batch[1].to(images.device), strength)
        if self.args.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self._criterion(self._forward(model, images), targets)

    def _floats(self, images: Tensor) -> Tensor:
        return images.to(self.accelerator.device, non_blocking=True).float() / 255

    def _candidate_loss(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return self._criterion(self._forward(model, images), targets)

    def _held_out(self) -> list[Batch]:
        """This rank's batches for a search, at least two, cropped and augmented once at full strength, not mixed."""
        held, args = self.data.held_out, self.args
        if held is None:
            return []
        augment = Augment(replace(args.augment, mixup=0.0, cutmix=0.0), len(self.data.classes), args.train.smoothing)
        strength = strengths(args.augment, 0.0, 1)[0]
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        images, labels = held.images[mine], held.labels[mine]
        size = min(args.train.batch_size, max(1, len(labels) // 2))
        with torch.random.fork_rng():
            torch.manual_seed(args.train.seed)
            pairs = zip(images.split(size), labels.split(size))
            return [augment(pixels.float() / 255, classes, strength) for pixels, classes in pairs]

    def _count_flops(self, batch: Batch, strength: Strength) -> int:
        """FLOPs of a pass whose gradients are thrown away: the counter takes other kernels, so it may not train."""
        flops = counted_flops(lambda: self._loss(self.bare, batch, strength).backward())
        for parameter in self.bare.parameters():
            parameter.grad = None
        return flops * self.args.train.grad_accum_steps

    def _enter_shape(self) -> None:
        """Get ready for the sub-network that trains next: strength of regularisation, size of the decoded images."""
        growth = self.growth
        strength = self._strengths[-1 if growth.searching else growth.stage]
        set_drop_path(self.bare, strength.drop_path)
        # A supernet draws another resolution in every step, so its images come at full size.
        size = self.args.model.img_size if growth.searching else growth.resolution
        if self.data.train.size != size:
            self.data.train.resize(size)
        self.model.train()
        peak_memory(self.accelerator.device)  # forget the peak of getting ready

    def _batches(self) -> Iterator[Batch]:
        """Batches from where the run stands, epoch after epoch."""
        train, accelerator, rows = self.args.train, self.accelerator, self.data.train
        done = self.step * train.grad_accum_steps
        while True:
            epoch, offset = divmod(done, self._batches_per_epoch)
            rows.epoch = epoch
            sampler = EpochBatches(
                len(rows),
                batch=train.batch_size,
                seed=train.seed,
                epoch=epoch,
                start=offset,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
            )
            loader: DataLoader = make_loader(rows, sampler, self.args.data.workers)
            yield from loader
            done += len(sampler)

    def _validate_and_save(self) -> None:
        output = self.args.output
        if output.validation_steps and self.step % output.validation_steps == 0 and not self.growth.searching:
            self.record_validation()
        if self.step % output.checkpointing_steps == 0:
            write_checkpoint(self.accelerator, self.root, self.step, output.checkpoints_total_limit)

    def record_validation(self) -> dict[str, float]:
        """Validate raw and averaged weights, once per step, and keep the result with what training cost so far."""
        if self.log.validations and self.log.validations[-1]["step"] == self.step:
            return self.log.validations[-1]
        raw, ema = self.validate(averaged=False), self.validate(averaged=True)
        row = {"step": float(self.step), "loss": raw["loss"], "accuracy": raw["accuracy"]}
        row |= {"ema_loss": ema["loss"], "ema_accuracy": ema["accuracy"], "depth": float(self.growth.depth)}
        row |= {name: self.log.total(name) for name in ("seconds", "cpu_seconds", "flops")}
        self.log.validations.append(row)
        self.accelerator.log({f"validation/{name}": row[name] for name in row if name != "step"}, step=self.step)
        return row

    def _check_finite(self, name: str, value: float) -> None:
        check_finite(name, value, f"step {self.step}, stage {self.growth.stage + 1}", "--lr", self.root)

    def _clock(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _report(
        self, loss: float, spent: tuple[float, float], shape: tuple[int, int], stage: int, searching: bool, bar: tqdm
    ) -> None:
        depth, pixels = shape
        row = {"loss": loss, "seconds": spent[0], "cpu_seconds": spent[1], "stage": stage, "searching": searching}
        row |= {"depth": depth, "resolution": pixels, "flops": self.log.flops[f"{depth}x{pixels}"]}
        self.log.add(**row, memory=peak_memory(self.accelerator.device))
        name = f"{stage + 1}/{self.growth.num_stages}" + (" search" if searching else "")
        bar.set_postfix(loss=f"{loss:.4f}", stage=name, depth=depth, px=pixels)
        bar.update(1)
        if self.step % self.args.output.log_interval == 0:
            values = {"train_loss": loss, "lr": self.lr_schedule.get_last_lr()[0], "growth/stage": stage}
            values |= {"growth/depth": depth, "growth/resolution": pixels, "growth/step_seconds": spent[0]}
            self.accelerator.log(values, step=self.step)
