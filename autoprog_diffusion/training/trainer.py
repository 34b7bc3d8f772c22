"""`Trainer`: the training loop of the recipes and of vit/, an ordinary Accelerate loop with the growth lines in it."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.files import PLANNED_FILE
from autoprog_diffusion.growth.backward_step import BackwardStep
from autoprog_diffusion.growth.errors import StateError
from autoprog_diffusion.growth.protocol import Growth

from .arguments import OutputArguments
from .checkpoints import checkpoint_step, find_checkpoint, load_checkpoint, write_checkpoint
from .ends import Ends, Stopped
from .epochs import Epochs, epochs_of
from .flag_checks import check_warmup, short_epoch
from .measure import peak_memory
from .metrics import Metrics
from .optimizer_step import StepDone, accumulated_step, clip_gradient
from .rates import Rates
from .readings import Read, Readings, check_read
from .threads import threads_now
from .time_left import TimeLeft
from .tracking import log_decision, log_step, show_step


if TYPE_CHECKING:
    from accelerate import Accelerator

    from .compiled import CompiledBlocks


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
        epoch_batches: Batches of an epoch on this process.
        data_report: What the data holds and what of it is left out, if that is known.
        root: Folder of the checkpoints.
        ends: What hears the signals that end the run early; it hears none by default.
        identity: Of the data, so that a resumed run notices other data.
        backward_step: What moves blocks inside the backward pass, if anything does.
        threads: What torch computes with on the CPU.
        compiled: The blocks whose training steps are compiled, if some are.
        together: Whether all processes must take part in every forward pass, since each holds a part of the model.
    """

    lr_flag = "--learning_rate"
    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: Any
    max_steps: int
    epoch_batches: int
    data_report: DataReport | None = None
    compiled: CompiledBlocks | None = None
    together = False

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
        self.ends = Ends()
        self.identity: dict[str, Any] = {}
        self.backward_step = BackwardStep()
        self.threads = threads_now()
        self._written: int | None = None
        self._readings = Readings(accelerator, output.log_interval)
        self._output = output
        self._resolution = resolution
        self._accumulation = accumulation
        file = self.root.with_name(PLANNED_FILE) if accelerator.is_main_process else None
        self._time_left = TimeLeft(self.metrics, growth, accumulation, file)
        self._max_norm = max_norm
        self._batches: Iterator[Any] = iter(())
        self._bar = tqdm(disable=True)

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

    def look_at_held_out(self) -> None:  # noqa: B027 - nothing, where nothing is held out
        """Evaluate held-out data where it is time; it must not change what trains."""

    def closing_words(self) -> list[str]:
        """Sentences for the end of the run's summary."""
        return []

    def finish(self) -> None:
        """Leave a plain model."""
        self.growth.fold(self.model)

    @property
    def over(self) -> bool:
        """Whether no step is to come."""
        return self.step >= self.max_steps

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps of an epoch whose stages leave their batches to the flags; the last step may have fewer."""
        return math.ceil(self.epoch_batches / self._accumulation)

    def position(self) -> tuple[int, int]:
        """The epoch that the run stands in, and how many of its batches are done."""
        return self.epochs.position(self.step)

    @property
    def epochs(self) -> Epochs:
        """Batches of every optimizer step."""
        return epochs_of(self.growth.plan, batches=self.epoch_batches, accumulation=self._accumulation)

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

    def check_lengths(self, flag: str, steps: int, given: Sequence[str]) -> None:
        """Refuse a warm-up of the command line that is longer than the run; say what else does not fit its length.

        Raises:
            ConfigError: As `flag_checks.check_warmup`.
        """
        notes = (check_warmup(flag, steps, self.max_steps, given), short_epoch(self.epoch_batches, self._accumulation))
        for note in filter(None, notes):
            self.accelerator.print(note)

    def resume(self, wanted: str) -> bool:
        """Load a checkpoint by name, or the newest complete one; returns whether there was one.

        Learning rate, weight decay and schedule are those of this run from now on.

        Raises:
            StateError: It is not complete, damaged, of another plan or model, or beyond the end of the run.
        """
        path = find_checkpoint(self.root, wanted)
        self.accelerator.wait_for_everyone()
        if path is None:
            return False
        step = checkpoint_step(path)
        if step > self.max_steps:
            raise StateError(
                f"{path.name} is at step {step}, and the run would end at step {self.max_steps}: ask for {step} steps "
                "or more, or resume an earlier checkpoint."
            )
        rates = Rates(self.optimizer, self.lr_scheduler)
        before = load_checkpoint(self.accelerator, path)
        rates.put_back(self.accelerator.num_processes, before)
        self.step = step
        self._written = step if path.parent == self.root else None
        return True

    def train(self, on_step: Callable[[int], object] | None = None) -> None:
        """Train to the end, with a progress bar; `on_step(step)` is called after every optimizer step.

        Raises:
            TrainingError: The loss is not finite, or a checkpoint cannot be written.
            Stopped: A signal asked for the end; a checkpoint of the step is written.
        """
        self._batches = self.batches()
        # `resume` restored the random generators: getting ready must not advance them.
        with torch.random.fork_rng():
            self._enter_stage()
            self.look_at_held_out()
        self.ends.defer()
        main = self.accelerator.is_main_process
        bar = tqdm(total=self.max_steps, initial=self.step, desc="training", disable=not main)
        with bar as self._bar, logging_redirect_tqdm():
            while not self.over:
                self._train_step()
                self._stop_if_asked()
                self.look_at_held_out()
                self._validate_and_save()
                if on_step is not None:
                    on_step(self.step)
                self._stop_if_asked()
            self._read()

    def checkpoint(self) -> None:
        """Write a checkpoint of the step, unless this run has just written it.

        Raises:
            TrainingError: It cannot be written.
        """
        self._read()
        if self._written != self.step:
            write_checkpoint(self.accelerator, self.root, self.step, self._output.checkpoints_total_limit)
            self._written = self.step

    def _stop_if_asked(self) -> None:
        """Write a checkpoint and end where a signal came: to any rank by the step's reduction, or to the only one."""
        number = self._readings.asked if self.accelerator.num_processes > 1 else self.ends.asked
        if not number:
            return
        self.checkpoint()
        stopped = Stopped(number)
        self.accelerator.print(
            f"stopped by {stopped.name} after step {self.step} of {self.max_steps}: "
            f"{self.root / f'checkpoint-{self.step}'} is complete."
        )
        raise stopped

    def _train_step(self) -> None:
        """One optimizer step, and what follows from it: average, growth, metrics, the next stage."""
        row = {
            "stage": self.growth.stage,
            "searching": self.growth.searching,
            "blocks": self.blocks,
            "trainable": self.growth.trainable_fraction,
            "resolution": self.pixels,
            "flops": self._count_flops(),
        }
        self._readings.begin()
        done = self._optimizer_step()
        self.average()
        self.step += 1
        entered = self.growth.step()
        row["memory"] = peak_memory(self.accelerator.device)
        self._readings.add(row, self.step, done)
        if entered or self.over or self._readings.due:
            self._read()
        if entered:
            self._enter_stage()
            log_decision(self.accelerator, self.growth, self.step)

    def _optimizer_step(self) -> StepDone:
        """Accumulate gradients, clip them and step; nothing waits for the device."""
        with self.compiled.training(self.growth.stage) if self.compiled else nullcontext():
            done = accumulated_step(
                self.accelerator,
                self.model,
                self.optimizer,
                passes=self.epochs.passes_of(self.step),
                loss=lambda: self.loss(self.model, next(self._batches)),
                clip=self._clip,
            )
        self.lr_scheduler.step()
        return done

    def _read(self) -> None:
        """Take in the steps since the last reading; raises as `train` does."""
        for each in self._readings.read(self.ends):
            check_read(each, self.lr_flag, self.root, scaled=self.accelerator.scaler is not None)
            self._report(each)

    def _clip(self) -> Tensor | None:
        return clip_gradient(self.accelerator, self.growth.parameters(), self._max_norm, self.backward_step)

    def _count_flops(self) -> int:
        """FLOPs of one optimizer step on this process: once for a network, in a pass that does not train."""
        known = self.metrics.flops
        exact = self._time_left.exact
        if self.network not in known and exact is not None:
            known[self.network] = exact
        if self.network not in known:
            batch = next(self._batches)
            self._batches = itertools.chain([batch], self._batches)  # it trains in the step that follows
            with self.backward_step.paused():
                passes = self._time_left.counted(self.bare, lambda: self.loss(self.bare, batch))
            known[self.network] = passes * self.epochs.passes[self.growth.stage]
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
            self._read()
            self.validate()
        if self.step % self._output.checkpointing_steps == 0:
            self.checkpoint()

    def _report(self, read: Read) -> None:
        """Give the metrics of one step to the checkpoints, the progress bar and the trackers."""
        self.metrics.add(**read.row)
        show_step(self._bar, read.row, len(self.growth.plan.stages), self._time_left.tell())
        if read.step % (self._output.log_interval or 1) == 0:
            log_step(self.accelerator, read.row, float(self.lr_scheduler.get_last_lr()[0]), read.step)
