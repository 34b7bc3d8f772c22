"""`Trainer`: the training loop of the recipes and of vit/, an ordinary Accelerate loop with the growth lines in it."""

from __future__ import annotations

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.growth.protocol import Growth

from .arguments import OutputArguments
from .checkpoints import (
    TrainingError,
    checkpoint_step,
    find_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    write_checkpoint,
)
from .measure import counted_flops, peak_memory, synchronize
from .metrics import Metrics
from .report import is_chosen, scores


if TYPE_CHECKING:
    from accelerate import Accelerator

# Name of a value for the trackers -> column of the metrics.
LOGGED = {
    "train_loss": "loss",
    "growth/stage": "stage",
    "growth/blocks": "blocks",
    "growth/resolution": "resolution",
    "growth/trainable_fraction": "trainable",
    "growth/step_seconds": "seconds",
}


class Trainer(ABC):
    """One run: the prepared objects and the number of optimizer steps done.

    A subclass prepares model, optimizer and learning rate, calls `growth.prepare`, and registers what a checkpoint
    must hold.

    Args:
        model: The bare model.
        growth: Its growth object, not yet prepared.
        accelerator: The run's accelerator.
        output: When to write checkpoints, to validate and to log, and where.
        resolution: Side of the training images in pixels.
        accumulation: Forward passes per optimizer step.
        max_norm: Norm that gradients are clipped to, or None.

    Attributes:
        bare: The bare model.
        model: The prepared model.
        metrics: Metrics of the steps done.
        step: Number of optimizer steps done.
        max_steps: Number of optimizer steps of the run.
        data_report: What the data holds and what of it is left out, if that is known.
        root: Folder of the checkpoints.
    """

    lr_flag = "--learning_rate"
    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    max_steps: int
    data_report: DataReport | None = None

    def __init__(
        self,
        model: nn.Module,
        growth: Growth,
        accelerator: Accelerator,
        *,
        output: OutputArguments,
        resolution: int,
        accumulation: int,
        max_norm: float | None,
    ) -> None:
        self.bare = model
        self.growth = growth
        self.accelerator = accelerator
        self.metrics = Metrics()
        self.step = 0
        self.root = Path(output.output_dir) / "checkpoints"
        self._output = output
        self._resolution = resolution
        self._accumulation = accumulation
        self._max_norm = max_norm
        self._batches: Iterator[Any] = iter(())

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one batch, a scalar, with the prepared or the bare model."""

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """Batches from where the run stands, epoch after epoch, in an order that depends on seed and epoch only."""

    @abstractmethod
    def enter_stage(self) -> None:
        """Get data and model ready for the stage, or the network of a search, that begins."""

    @abstractmethod
    def average(self) -> None:
        """Average the weights after an optimizer step."""

    @abstractmethod
    def validate(self) -> object:
        """Look at the model in the middle of training, every `--validation_steps`."""

    def finish(self) -> None:
        """Leave a plain model."""
        self.growth.fold(self.model)

    @property
    def blocks(self) -> int:
        """Number of blocks that train now."""
        return len(self.growth.plan.stages[self.growth.stage].blocks)

    @property
    def pixels(self) -> int:
        """Side of the images that train now, in pixels."""
        resolution = self.growth.resolution
        return round(resolution * self._resolution) if isinstance(resolution, float) else resolution

    @property
    def network(self) -> str:
        """Name of the network that trains now. Networks of one name need as many FLOPs."""
        return f"stage {self.growth.stage + 1}, {self.blocks} blocks, {self.pixels} pixels"

    def resume(self, wanted: str) -> bool:
        """Load a checkpoint by name, or the newest complete one; returns whether there was one.

        Raises:
            StateError: It is not complete, damaged, or of another plan or model.
        """
        path = find_checkpoint(self.root, wanted)
        self.accelerator.wait_for_everyone()
        if path is None:
            return False
        load_checkpoint(self.accelerator, path)
        self.step = checkpoint_step(path)
        return True

    def train(self, on_step: Callable[[int], object] | None = None) -> None:
        """Train to the end, with a progress bar; `on_step(step)` is called after every optimizer step.

        Raises:
            TrainingError: The loss is not finite, or a checkpoint cannot be written.
        """
        self._batches = self.batches()
        # `resume` restored the random generators: getting ready must not advance them.
        with torch.random.fork_rng():
            self._enter_stage()
        hidden = not self.accelerator.is_main_process
        bar = tqdm(total=self.max_steps, initial=self.step, desc="training", disable=hidden)
        with bar, logging_redirect_tqdm():
            while self.step < self.max_steps:
                self._train_step(bar)
                self._validate_and_save()
                if on_step is not None:
                    on_step(self.step)

    def _train_step(self, bar: tqdm) -> None:
        """One optimizer step, and what follows from it: average, growth, metrics, the next stage."""
        row = {
            "stage": self.growth.stage,
            "searching": self.growth.searching,
            "blocks": self.blocks,
            "trainable": self.growth.trainable_fraction,
            "resolution": self.pixels,
            "flops": self._count_flops(),
        }
        wall = time.perf_counter()
        cpu = time.process_time()
        row["loss"] = self._optimizer_step()
        self.average()
        self.step += 1
        entered = self.growth.step()
        synchronize(self.accelerator.device)
        row["seconds"] = time.perf_counter() - wall
        row["cpu_seconds"] = time.process_time() - cpu
        row["memory"] = peak_memory(self.accelerator.device)
        self._report(row, bar)
        if entered:
            self._enter_stage()
            self._log_decision()

    def _optimizer_step(self) -> float:
        """Accumulate gradients, clip them and step; returns the mean loss over all processes."""
        accelerator = self.accelerator
        losses = []
        norm = None
        while True:
            batch = next(self._batches)
            with accelerator.accumulate(self.model):
                loss = self.loss(self.model, batch)
                accelerator.backward(loss)
                losses.append(loss.detach())
                if accelerator.sync_gradients and self._max_norm is not None:
                    norm = accelerator.clip_grad_norm_(self.growth.parameters(), self._max_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if accelerator.sync_gradients:
                break
        self.lr_scheduler.step()
        own = torch.stack(losses).mean()
        mean: Any = accelerator.reduce(own, reduction="mean")
        self._check_finite("loss", float(mean))
        # The gradient scaler of fp16 skips steps whose gradients are not finite by itself.
        if norm is not None and accelerator.scaler is None:
            self._check_finite("gradient's norm", float(norm))
        return float(mean)

    def _count_flops(self) -> int:
        """FLOPs of one optimizer step on this process, counted once for each network, outside the timed step.

        The pass that is counted may not train: the counter makes torch take other kernels.
        """
        known = self.metrics.flops
        if self.network not in known:
            batch = next(self._batches)
            self._batches = itertools.chain([batch], self._batches)  # it trains in the step that follows
            passes = counted_flops(lambda: self.loss(self.bare, batch).backward())
            known[self.network] = passes * self._accumulation
            for parameter in self.growth.parameters():
                parameter.grad = None
        return known[self.network]

    def _enter_stage(self) -> None:
        self.enter_stage()
        self.model.train()
        peak_memory(self.accelerator.device)  # forget the peak of getting ready

    def _validate_and_save(self) -> None:
        every = self._output.validation_steps
        if every and self.step % every == 0 and not self.growth.searching:
            self.validate()
        if self.step % self._output.checkpointing_steps == 0:
            write_checkpoint(self.accelerator, self.root, self.step, self._output.checkpoints_total_limit)

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {name} is {value} at step {self.step}, stage {self.growth.stage + 1}: lower {self.lr_flag} or "
                f"use --mixed_precision bf16. The newest complete checkpoint is {newest_checkpoint(self.root)}."
            )

    def _report(self, row: dict[str, float], bar: tqdm) -> None:
        """Give the metrics of one step to the checkpoints, the progress bar and the trackers."""
        self.metrics.add(**row)
        search = " search" if row["searching"] else ""
        bar.set_postfix(
            loss=f"{row['loss']:.4f}",
            stage=f"{row['stage'] + 1}/{len(self.growth.plan.stages)}{search}",
            px=row["resolution"],
            blocks=row["blocks"],
            trains=f"{row['trainable']:.0%}",
        )
        bar.update(1)
        if self.step % self._output.log_interval == 0:
            values = {name: row[column] for name, column in LOGGED.items()}
            values["lr"] = self.lr_scheduler.get_last_lr()[0]
            self.accelerator.log(values, step=self.step)

    def _log_decision(self) -> None:
        """Give the trackers the scores of a choice that a search has just made."""
        for decision in self.growth.decisions[-1:]:
            if decision["stage"] != self.growth.stage:
                continue
            chosen = next(row for row in decision["candidates"] if is_chosen(decision, row))
            values = {f"growth/search/{name}": score for name, score in scores(chosen).items()}
            if "seconds" in decision:
                values["growth/search/seconds"] = decision["seconds"]
            self.accelerator.log(values, step=self.step)
