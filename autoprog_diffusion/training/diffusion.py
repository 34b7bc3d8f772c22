"""`DiffusionTrainer`: the training loop with a task of diffusion, Diffusers' schedules, and an average of weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from autoprog_diffusion.data.bucket_batches import BucketBatches
from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth import GrowthPlan, GrowthScheduler
from autoprog_diffusion.growth.backends.fsdp2 import reshard
from autoprog_diffusion.growth.bare import bare
from autoprog_diffusion.growth.errors import GrowthWarning
from autoprog_diffusion.growth.power_average import PowerAverage

from .average import averages, check_checkpoint, make_average
from .batch_probe import batch_advice
from .checkpoints import find_checkpoint, keep_only
from .flag_checks import check_accumulations
from .given_plan import check_sizes, plan_for
from .held_out import HeldOutRun
from .optimizers import is_fused, make_optimizer
from .recipe_arguments import Arguments
from .samples import Pictures
from .saved_weights import SavedWeights
from .sharded import is_sharding, name_blocks
from .sharded_state import AverageSettings, ShardedState, local_parameters, parameters_now
from .trained_dtype import store_in_float32
from .trainer import Trainer
from .whole import Whole


if TYPE_CHECKING:
    from accelerate import Accelerator


class Task(Protocol):
    """One kind of diffusion training: batches in, loss out."""

    resolution: int

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get ready for the resolution of the stage that begins."""
        ...

    def loss(self, denoiser: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of one batch, a scalar."""
        ...

    def held_out_losses(self, denoiser: Any, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """The loss of every sample with the noise and the timesteps of a draw, (N,) float32."""
        ...


class DiffusionTrainer(Trainer):
    """Fine-tunes a denoiser.

    Args:
        denoiser: The bare model that is fine-tuned.
        growth: Its scheduler, not yet prepared.
        plan: Stages to follow instead of the fixed schedule.
        task: Batches to losses.
        loader: Batches of rows, not yet prepared.
        args: The recipe's arguments.
        accelerator: The run's accelerator.

    Attributes:
        ema: Average of the weights with a fixed decay, if there is one.
        power: Averages whose width grows with the run, if there are some.
        pictures: Drawn every `--validation_steps`, if it is set.
        held_out: Evaluations on images that do not train, if there are some.

    Raises:
        GrowthError: The run is too short, the plan does not fit, or an object is in the wrong state.
    """

    growth: GrowthScheduler
    pictures: Pictures | None = None
    held_out: HeldOutRun | None = None

    def __init__(
        self,
        denoiser: nn.Module,
        growth: GrowthScheduler,
        *,
        plan: GrowthPlan | None,
        task: Task,
        loader: DataLoader,
        args: Arguments,
        accelerator: Accelerator,
    ) -> None:
        train = args.train
        super().__init__(
            denoiser,
            growth,
            accelerator,
            output=args.output,
            resolution=task.resolution,
            accumulation=train.gradient_accumulation_steps,
            max_norm=train.max_grad_norm,
        )
        self.task = task
        self._train = train
        self._given = args.given
        self._rows: Any = loader.dataset
        self._buckets = loader.batch_sampler
        # Taken now: growth freezes parameters, but what does not train from the start never will.
        trained = [name for name, value in denoiser.named_parameters() if value.requires_grad]
        self._names = trained
        self._complete = len(trained) == len(list(denoiser.parameters()))
        self.together = is_sharding(accelerator)
        self._whole = Whole(denoiser) if self.together else None
        self._tell_accelerator(denoiser)
        self.epoch_batches = max(1, len(loader) // accelerator.num_processes)
        check_accumulations(growth.config.accumulations, train.max_train_steps)
        self.max_steps = train.max_train_steps or train.num_train_epochs * self.epoch_steps
        self.check_lengths("lr_warmup_steps", self.warmup_steps, args.given)
        self._time_left.work = self._work
        self.model, self.optimizer, self._loader, self.lr_scheduler = self._prepared(denoiser, loader)
        self._trained = list(parameters_now(denoiser, trained).values())
        self.ema = self._make_ema()
        checkpoint = find_checkpoint(self.root, args.output.resume_from_checkpoint)
        plan = plan_for(plan, self.max_steps, checkpoint)
        growth.prepare(self.model, num_training_steps=self.max_steps, plan=plan)
        self.power = self._make_power(checkpoint)
        self._step_in_backward()
        check_sizes(growth, task.resolution)
        self._register(trained)

    @property
    def network(self) -> str:
        """As of any trainer; with `--checkpointing auto` blocks are spared after the first step of a stage."""
        record = self.growth.history[-1]
        if record.memory is None or not record.recomputed:
            return super().network
        return f"{super().network}, {len(record.recomputed)} computed again"

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.task.loss(model, batch)

    def batches(self) -> Iterator[Any]:
        epoch, done = self.position()
        while True:
            self._loader.set_epoch(epoch)
            self._rows.epoch = epoch
            yield from self.accelerator.skip_first_batches(self._loader, done) if done else self._loader
            epoch += 1
            done = 0

    def _work(self, step: int, passes: int | None) -> float:
        """Pixels of the first passes of a step, or of all, over those of as many mean ones."""
        if not isinstance(self._buckets, BucketBatches):
            return 1.0
        epoch, done = self.epochs.position(step)
        return self._buckets.work(epoch, done, passes or self.epochs.passes_of(step))

    def train(self, on_step: Callable[[int], object] | None = None) -> None:
        if self._train.probe_batch and not self.over:
            self.accelerator.print(batch_advice(self, self._train.gradient_accumulation_steps))
        super().train(on_step)

    def enter_stage(self) -> None:
        self.task.enter_stage(self.growth)

    def average(self) -> None:
        if self.ema is not None:
            self.ema.step(local_parameters(self.growth.ema_parameters(self._trained)))
        if self.power is not None:
            self.power.step()

    def validate(self) -> None:
        if self.pictures is not None:
            with self.saved_weights().in_place():
                self.pictures.save_step(self.step)
        reshard(self.bare)

    def resume(self, wanted: str) -> bool:
        path = find_checkpoint(self.root, wanted)
        if path is not None:
            check_checkpoint(self.power, path)
        found = super().resume(wanted)
        if path is not None and self.held_out is not None:
            self.held_out.go_back(self, path)
        if found and self.ema is not None:
            # Loading replaced its tensors.
            self.ema.to(self._ema_device())
        return found

    def finish(self) -> None:
        """Put the averaged weights in place, if there are any, and fold the stage embedding into them, in float32."""
        reshard(self.bare)
        if self.growth.config.frozen_dtype is not None:
            # Growth leaves in CPU memory what it gives back.
            self.bare.to(self.accelerator.device)
        if self._train.trained_dtype == "bfloat16":
            # Before the average, which is float32, and would be rounded.
            store_in_float32(self._trained)
        if self.ema is not None:
            self.ema.copy_to(local_parameters(self._trained))
        if self.power is not None:
            self.power.copy_to()
        self.save_beside(self._output.output_dir)
        with warnings.catch_warnings():
            if self.step < self.max_steps:
                # Growth warns of a fold in the middle of the plan.
                warnings.simplefilter("ignore", GrowthWarning)
            super().finish()
        if self.held_out is not None:
            self.held_out.finish(self)
        if self.together:
            self.accelerator.print(f"{self.accelerator.num_processes} ranks end with their shards of one model.")
        elif self.accelerator.num_processes > 1:
            self.accelerator.print(f"{self.accelerator.num_processes} ranks end with bit-identical weights.")

    def plain_pipeline(self, pipeline: Any) -> Any:
        """The pipeline as it is saved: with the whole model on the main process, where every process holds a part."""
        if self._whole is None:
            return pipeline
        self._whole.fill(self.bare)
        return self._whole.pipeline(pipeline, self.bare)

    def watch_held_out(self, held_out: HeldOutRun) -> None:
        """Evaluate held-out images from now on; before a checkpoint is loaded."""
        self.held_out = held_out
        held_out.register(self)

    def look_at_held_out(self) -> None:
        if self.held_out is not None:
            self.held_out.follow(self)

    @property
    def over(self) -> bool:
        return super().over or (self.held_out is not None and self.held_out.stopped)

    def closing_words(self) -> list[str]:
        return [] if self.held_out is None else self.held_out.words(self)

    def saved_weights(self) -> SavedWeights:
        """The weights that would be saved now."""
        return SavedWeights(
            self.bare,
            self.model,
            self.growth,
            self.power or self.ema,
            names=self._names,
            complete=self._complete,
        )

    def save_beside(self, folder: str | Path) -> None:
        """Write the rows of the stage embedding where the weights cannot hold them.

        A fold cannot express the null row, and LoRA's file holds no bias.
        """
        embedded = self.growth.stage_embedding is not None
        if embedded and (self.growth.config.stage_dropout or not self._complete):
            self.growth.save_stage_embedding(folder)

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of warm-up: by default a tenth of the run at most, and none where the rate is constant."""
        steps = self._train.lr_warmup_steps
        if "lr_warmup_steps" in self._given:
            return steps
        return 0 if self._train.lr_scheduler == "constant" else min(steps, self.max_steps // 10)

    def _step_in_backward(self) -> None:
        """Let blocks step inside the backward pass, if the flags ask for it."""
        norm = self._train.max_grad_norm
        if not self._train.step_in_backward:
            return
        self.backward_step = self.growth.step_in_backward(self.optimizer, max_norm=norm)
        self.accelerator.print(
            f"Blocks step inside the backward pass: the gradient of each is clipped to norm {norm}."
        )

    def _prepared(self, denoiser: nn.Module, loader: DataLoader) -> Any:
        """Model, optimizer, loader and schedule, as Accelerate prepares them."""
        optimizer = self._make_optimizer()
        objects = (denoiser, optimizer, loader, self._make_schedule(optimizer))
        # Batches stay on the CPU: tasks look up rows with them there, and would wait for the device to get them back.
        return self.accelerator.prepare(*objects, device_placement=[None, None, False, None])

    def _tell_accelerator(self, denoiser: nn.Module) -> None:
        """What is sharded, or what checkpoints hold where not all parameters train."""
        if self.together:
            name_blocks(self.accelerator, denoiser)
        elif not self._complete:
            keep_only(self.accelerator, denoiser, self._names)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        train = self._train
        images = train.train_batch_size * train.gradient_accumulation_steps * self.accelerator.num_processes
        grouped = self.growth.config.rewarm_steps > 0
        parameters = self.growth.parameter_groups() if grouped else self.growth.parameters()
        fused = is_fused(train, self.accelerator.device, sharded=self.together)
        return make_optimizer(parameters, train, images, fused=fused)

    def _make_schedule(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        # Accelerate advances a prepared schedule once per process and step.
        scale = self.accelerator.num_processes
        return get_scheduler(
            self._train.lr_scheduler,
            optimizer,
            num_warmup_steps=self.warmup_steps * scale,
            num_training_steps=self.max_steps * scale,
        )

    def _register(self, trained: Sequence[str]) -> None:
        """Let checkpoints hold metrics and average, and of a sharded run all that is cut between the processes."""
        accelerator = self.accelerator
        accelerator.register_for_checkpointing(self.metrics)
        if self.ema is not None:
            accelerator.register_for_checkpointing(AverageSettings(self.ema) if self.together else self.ema)
        if self.together:
            ShardedState(self.bare, bare(self.optimizer), trained, self.ema).register(accelerator)

    def _ema_device(self) -> torch.device:
        return torch.device("cpu") if self._train.offload_ema else self.accelerator.device

    def _make_power(self, checkpoint: Path | None) -> PowerAverage | None:
        if not averages(self._train, self.accelerator, self.max_steps, checkpoint):
            return None
        return make_average(self.model, self.growth, self.accelerator, self._train)

    def _make_ema(self) -> EMAModel | None:
        if not self._train.use_ema:
            return None
        # In float32 whatever trains: an average moves by less than bfloat16 can tell.
        averaged: Any = [parameter.detach().float() for parameter in local_parameters(self._trained)]
        ema = EMAModel(averaged, decay=self._train.ema_decay, foreach=self._train.foreach_ema)
        ema.to(self._ema_device())
        if self._train.offload_ema and torch.cuda.is_available():
            ema.pin_memory()
        return ema
