"""The training loop of the recipes: an ordinary Diffusers loop with the growth lines in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from autoprog_diffusion.growth import GrowthPlan, GrowthScheduler
from autoprog_diffusion.growth.resize import stage_size

from .arguments import Arguments
from .build import make_optimizer
from .checkpoints import checkpoint_step, find_checkpoint, keep_only
from .guard import check_finite, write_checkpoint
from .measure import counted_flops, peak_memory, synchronize
from .metrics import RunLog


if TYPE_CHECKING:
    from accelerate import Accelerator


class Task(Protocol):
    """What a recipe gives the loop."""

    resolution: int

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get ready for the resolution of the stage that begins."""
        ...

    def loss(self, denoiser: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        ...


class Trainer:
    """One run: the prepared objects and the number of steps done.

    Args:
        denoiser: The bare model that is fine-tuned.
        growth: Its scheduler, not yet prepared.
        plan: Stages to follow instead of the fixed schedule.
        task: Batches to losses.
        loader: Not yet prepared.
        args: The recipe's arguments.
        accelerator: Of the run.

    Raises:
        GrowthError: The run is too short, the plan does not fit, or an object is in the wrong state.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        growth: GrowthScheduler,
        plan: GrowthPlan | None,
        task: Task,
        loader: DataLoader,
        args: Arguments,
        accelerator: Accelerator,
    ) -> None:
        self.args, self.accelerator, self.growth, self.task = args, accelerator, growth, task
        self.bare, self.log, self.step = denoiser, RunLog(), 0
        train = args.train
        trained = [name for name, parameter in denoiser.named_parameters() if parameter.requires_grad]
        # Taken now: growing freezes parameters, but what does not train from the start never will.
        self._trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
        self._whole = len(trained) == len(list(denoiser.parameters()))
        if not self._whole:
            keep_only(accelerator, denoiser, trained)
        self.ema = _make_ema(self._trained, args, accelerator)
        batch = train.train_batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        optimizer = make_optimizer(growth.parameters(), train, batch)
        steps = train.max_train_steps or train.num_train_epochs * max(
            1, len(loader) // accelerator.num_processes // train.gradient_accumulation_steps
        )
        self.max_steps, self._rows = steps, loader.dataset
        # Accelerate advances a prepared schedule once per process and step.
        scale = accelerator.num_processes
        lr_scheduler = get_scheduler(
            train.lr_scheduler,
            optimizer,
            num_warmup_steps=train.lr_warmup_steps * scale,
            num_training_steps=steps * scale,
        )
        self.denoiser, self.optimizer, self.loader, self.lr_scheduler = accelerator.prepare(
            denoiser, optimizer, loader, lr_scheduler
        )
        growth.prepare(self.denoiser, num_training_steps=steps, plan=plan)
        for size in (*(stage.resolution for stage in growth.plan.stages), *(growth.config.resolutions or ())):
            stage_size((task.resolution, task.resolution), size, growth.config.resolution_multiple)
        for state in (self.log, *([self.ema] if self.ema is not None else [])):
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
        if self.ema is not None:
            self.ema.to("cpu" if self.args.train.offload_ema else self.accelerator.device)
        self.step = checkpoint_step(path)
        return True

    def train(self, on_step: Any = None) -> None:
        """Train to the end, with a progress bar; `on_step(step)` is called after every optimizer step.

        Raises:
            TrainingError: The loss is not finite.
        """
        # The generators were restored by `resume`; getting ready must not move them.
        with torch.random.fork_rng():
            self._enter_stage()
        batches = self._batches()
        bar = tqdm(
            total=self.max_steps, initial=self.step, desc="training", disable=not self.accelerator.is_main_process
        )
        with bar, logging_redirect_tqdm():
            while self.step < self.max_steps:
                self._optimizer_step(batches, bar)
                if on_step is not None:
                    on_step(self.step)

    def finish(self) -> None:
        """Put the averaged weights in place, if there are any, and fold the stage embedding into them."""
        if self.ema is not None:
            self.ema.copy_to(self._trained)
        embedded = self.growth.state_dict()["embedding"] is not None
        if embedded and (self.growth.config.stage_dropout or not self._whole):
            # A fold cannot express the null row, and LoRA's file holds no bias: the rows travel beside the weights.
            self.growth.save_stage_embedding(self.args.output.output_dir)
        self.growth.fold(self.denoiser)
        if self.accelerator.num_processes > 1:
            self.accelerator.print(f"{self.accelerator.num_processes} ranks end with bit-identical weights.")

    def _optimizer_step(self, batches: Iterator[dict[str, Tensor]], bar: tqdm) -> None:
        accelerator, growth = self.accelerator, self.growth
        started, losses, stage, norm = time.perf_counter(), [], growth.stage, None
        while True:
            batch = next(batches)
            if stage not in self.log.flops:
                self.log.flops[stage] = self._count_flops(batch)
                started = time.perf_counter()
            with accelerator.accumulate(self.denoiser):
                loss = self.task.loss(self.denoiser, batch)
                accelerator.backward(loss)
                losses.append(loss.detach())
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(growth.parameters(), self.args.train.max_grad_norm)
                self.optimizer.step()
                self.lr_scheduler.step()
                self.optimizer.zero_grad()
            if accelerator.sync_gradients:
                break
        mean_loss = self._mean(losses)
        # A gradient scaler (fp16) skips such steps by itself.
        self._check_finite("gradient's norm", 0.0 if accelerator.scaler is not None or norm is None else float(norm))
        if self.ema is not None:
            self.ema.step(growth.ema_parameters(self._trained))
        self.step += 1
        synchronize(accelerator.device)
        self._report(mean_loss, time.perf_counter() - started, stage, bar)
        if growth.step():
            self._enter_stage()
            self._log_decision()
        if self.step % self.args.output.checkpointing_steps == 0:
            write_checkpoint(self.accelerator, self.root, self.step, self.args.output.checkpoints_total_limit)

    def _count_flops(self, batch: Any) -> int:
        """FLOPs of a pass whose gradients are thrown away: the counter takes other kernels, so it may not train."""
        flops = counted_flops(lambda: self.task.loss(self.bare, batch).backward())
        for parameter in self.growth.parameters():
            parameter.grad = None
        return flops

    def _log_decision(self) -> None:
        decisions = self.growth.decisions
        if decisions and decisions[-1]["stage"] == self.growth.stage:
            chosen = next(row for row in decisions[-1]["candidates"] if row["name"] == decisions[-1]["choice"])
            scores = {f"growth/search/{key}": float(chosen[key]) for key in ("cost", "kappa", "zico", "gain")}
            self.accelerator.log({**scores, "growth/search/seconds": decisions[-1]["seconds"]}, step=self.step)

    def _enter_stage(self) -> None:
        self.task.enter_stage(self.growth)
        self.denoiser.train()
        peak_memory(self.accelerator.device)  # forget the peak of getting ready

    def _mean(self, losses: list[Tensor]) -> float:
        mean = torch.stack(losses).mean()
        value = float(self.accelerator.reduce(mean, reduction="mean"))  # type: ignore[arg-type]
        self._check_finite("loss", value)
        return value

    def _check_finite(self, name: str, value: float) -> None:
        where = f"step {self.step}, stage {self.growth.stage + 1}"
        check_finite(name, value, where, "--learning_rate", self.root)

    def _report(self, loss: float, seconds: float, stage: int, bar: tqdm) -> None:
        growth, pixels = self.growth, self.pixels
        fraction = growth.trainable_fraction
        memory = peak_memory(self.accelerator.device)
        self.log.add(loss=loss, seconds=seconds, stage=stage, resolution=pixels, trainable=fraction, memory=memory)
        share = f"{fraction:.0%}"
        bar.set_postfix(loss=f"{loss:.4f}", stage=f"{stage + 1}/{len(growth.plan.stages)}", px=pixels, trains=share)
        bar.update(1)
        values = {"train_loss": loss, "lr": self.lr_scheduler.get_last_lr()[0], "growth/stage": stage}
        values |= {"growth/resolution": pixels, "growth/trainable_fraction": fraction, "growth/step_seconds": seconds}
        self.accelerator.log(values, step=self.step)

    @property
    def pixels(self) -> int:
        """Side of the images of the current stage, in pixels."""
        resolution = self.growth.resolution
        return round(resolution * self.task.resolution) if isinstance(resolution, float) else resolution

    def _batches(self) -> Iterator[Any]:
        """Batches from where the run stands, epoch after epoch, in an order that depends on seed and epoch only."""
        per_epoch = len(self.loader)
        accumulation = self.args.train.gradient_accumulation_steps
        done = self.step * accumulation
        while True:
            epoch, offset = divmod(done, per_epoch)
            self.loader.set_epoch(epoch)
            self._rows.epoch = epoch  # type: ignore[attr-defined]
            loader = self.accelerator.skip_first_batches(self.loader, offset) if offset else self.loader
            for batch in loader:
                yield batch
                done += 1


def _make_ema(trained: list[nn.Parameter], args: Arguments, accelerator: Accelerator) -> EMAModel | None:
    if not args.train.use_ema:
        return None
    ema = EMAModel(trained, decay=args.train.ema_decay, foreach=args.train.foreach_ema)
    ema.to("cpu" if args.train.offload_ema else accelerator.device)
    if args.train.offload_ema and torch.cuda.is_available():
        ema.pin_memory()
    return ema
