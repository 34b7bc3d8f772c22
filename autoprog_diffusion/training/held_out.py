"""`HeldOutRun`: the held-out loss of a run, the best weights by it, and whether it ends the run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from autoprog_diffusion.data.bucket_plan import BucketPlan
from autoprog_diffusion.data.rows import spread
from autoprog_diffusion.evaluation.best import FOLDER, BestWeights
from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.evaluation.held_out import HeldOut
from autoprog_diffusion.evaluation.pace import Pace, choose_pace, cost_between, mean_cost
from autoprog_diffusion.evaluation.record import EvaluationRecord
from autoprog_diffusion.evaluation.result import difference
from autoprog_diffusion.evaluation.stopping import DECAYING, Outlook, Point, reason_to_stop
from autoprog_diffusion.growth import GrowthConfig

from .recipe_arguments import Arguments


if TYPE_CHECKING:
    from .diffusion import DiffusionTrainer

logger = logging.getLogger(__name__)
RECENT = 50  # steps whose mean time says what the rest would have cost


class HeldOutTask(Protocol):
    """A task whose data is held out."""

    def enter_stage(self, growth: Any) -> None:
        """Get ready for a resolution."""
        ...

    def held_out_losses(self, denoiser: Any, batch: dict[str, Tensor], draw: Draw) -> Tensor:
        """The loss of every sample with fixed noise and timesteps, (N,) float32."""
        ...


@dataclass(frozen=True)
class FullSize:
    """What a task asks of a growth object, for images at their full resolution.

    Attributes:
        config: With the multiple of the images' sides.
        resolution: As a fraction.
    """

    config: GrowthConfig
    resolution: float = 1.0


class HeldOutRun:
    """Evaluates while a run trains, keeps the best weights on disk, and may end the run.

    Args:
        task: Of the held-out images.
        plan: Their sizes.
        args: Of the recipe.
    """

    def __init__(self, task: HeldOutTask, plan: BucketPlan, args: Arguments) -> None:
        self.record = EvaluationRecord()
        self._task = task
        self._plan = plan
        self._flags = args.evaluation
        self._train = args.train
        self._folder = Path(args.output.output_dir)
        self._best = BestWeights(self._folder / FOLDER)
        self._held_out: HeldOut | None = None
        self._pace: Pace | None = None

    def register(self, trainer: DiffusionTrainer) -> None:
        """Let the checkpoints of a run hold the evaluations and the best weights."""
        accelerator = trainer.accelerator

        def save(models: list[Any], weights: list[Any], folder: str) -> None:
            del models, weights
            if accelerator.is_main_process:
                self._best.keep_in(Path(folder))

        accelerator.register_for_checkpointing(self.record)
        accelerator.register_save_state_pre_hook(save)

    def go_back(self, trainer: DiffusionTrainer, checkpoint: Path) -> None:
        """Take the best weights of a checkpoint whose evaluations are loaded.

        Raises:
            StateError: It lacks them.
        """
        best = self.record.best
        if trainer.accelerator.is_main_process:
            self._best.take_from(checkpoint, None if best is None else best.step)
            self.record.write(self._folder)
        if self._flags.stop_patience is None:
            self.record.stopped = None
        if trainer.power is not None and self.record.widths:
            if trainer.over:
                trainer.power.use(min(self.record.widths, key=lambda width: self.record.widths[width]))
            else:
                self.record.widths = {}
        trainer.accelerator.wait_for_everyone()

    @property
    def stopped(self) -> bool:
        """Whether the run ends before its last step."""
        return self.record.stopped is not None

    def follow(self, trainer: DiffusionTrainer) -> None:
        """Evaluate, if it is time."""
        step = trainer.step
        pace = self._pace or self._choose_pace(trainer)
        if self.record.has(step) or not pace.due(step, trainer.max_steps) or trainer.growth.searching:
            return
        held_out = self._held_out or self._prepare(trainer, pace)
        saved = trainer.saved_weights()
        with saved.in_place():
            point = Point(step, held_out.evaluate(trainer.bare))
            self.record.points.append(point)
            if self.record.best is point:
                self._keep(trainer, saved.taken(), step)
        self._tell(trainer, point)
        self._stop_if_over(trainer)
        if trainer.over:
            self._choose_width(trainer, held_out)
        if trainer.accelerator.is_main_process:
            self.record.write(self._folder)

    def finish(self, trainer: DiffusionTrainer) -> None:
        """Give the folded model the best weights, where they are wanted and not its own."""
        best = self.record.best
        if best is not None and best.step != trainer.step and self._flags.export == "best":
            main = trainer.accelerator.is_main_process
            # Where a disk is not shared only the process that saves has the file.
            weights = self._best.load() if main or (self._best.step and not trainer.together) else {}
            trainer.saved_weights().load(weights)
            if main:
                self._best.bring_beside(self._folder)

    def clean_up(self) -> None:
        """Delete the best weights where the result holds them."""
        if self._flags.export == "best":
            shutil.rmtree(self._folder / FOLDER, ignore_errors=True)

    def words(self, trainer: DiffusionTrainer) -> list[str]:
        """What the evaluations said, for the end of the run's summary."""
        points = self.record.points
        best = self.record.best
        if best is None:
            return []
        first = f"{points[0].evaluation.loss:.4f} at step {points[0].step}, "
        words = [
            f"held-out loss: {first if points[0].step != best.step else ''}{best.evaluation.loss:.4f} at its best, "
            f"{points[-1].evaluation.loss:.4f} at step {points[-1].step}; {len(points)} evaluations of "
            f"{best.evaluation.losses.shape[1]} images took {self._seconds_share(trainer):.1%} of the training time."
        ]
        start = points[0].evaluation
        if points[0].step == 0 and start.loss < best.evaluation.loss:
            words.append("Training never lowered the held-out loss below that of the model it began with.")
        words.append(f"{self._verdict(trainer, best)}; {self._exported(trainer, best)}.")
        return words

    def _verdict(self, trainer: DiffusionTrainer, best: Point) -> str:
        text = f"Best at step {best.step} of {trainer.max_steps}"
        if self.record.stopped is None:
            return text
        minutes = self.record.stopped["seconds_saved"] / 60
        cost = f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds"
        return f"{text}; stopped at {self.record.stopped['step']}; the rest would have cost {cost}"

    def _exported(self, trainer: DiffusionTrainer, best: Point) -> str:
        if best.step == trainer.step:
            return "the last weights are the best ones, and are saved"
        if self._flags.export == "last":
            return f"the last weights are saved (--export last); the best ones are in {self._best.path}"
        last = self.record.points[-1]
        clear = difference(last.evaluation, best.evaluation).is_higher
        words = "is higher" if clear else "is higher by no more than noise"
        return f"the best weights are saved, not the last ones, whose loss {words}"

    def _seconds_share(self, trainer: DiffusionTrainer) -> float:
        spent = sum(point.evaluation.seconds for point in self.record.points)
        return spent / max(spent + trainer.metrics.total("seconds"), 1e-9)

    def _choose_pace(self, trainer: DiffusionTrainer) -> Pace:
        """The pace that the run began with, or that of this run where it begins."""
        if self.record.pace:
            pace = Pace(**self.record.pace)
            if self._flags.evaluation_steps is not None:
                pace = Pace(pace.images, pace.draws, every=self._flags.evaluation_steps, start=pace.start)
        else:
            batch = self._train.train_batch_size * self._train.gradient_accumulation_steps
            pace = choose_pace(
                images=self._plan.images,
                steps=trainer.max_steps,
                batch=batch * trainer.accelerator.num_processes,
                cost=mean_cost(trainer.growth.plan),
                share=self._flags.evaluation_share,
                every=self._flags.evaluation_steps,
            )
        self.record.pace = pace.to_dict()
        self._pace = pace
        logger.info(
            f"held-out loss of {pace.images} of {self._plan.images} images, {pace.draws} times each, "
            f"every {pace.every} steps and at the end."
        )
        return pace

    def _prepare(self, trainer: DiffusionTrainer, pace: Pace) -> HeldOut:
        full: Any = FullSize(trainer.growth.config)
        with torch.random.fork_rng():
            self._task.enter_stage(full)
        rows = torch.tensor(spread(self._plan.images, pace.images))
        batches = []
        for items in self._plan.groups(self._plan.largest_of(rows), self._train.train_batch_size):
            # Of several captions the first one.
            batches.append({"index": self._plan.rows[items], "item": items, "draw": torch.zeros_like(items)})
        self._held_out = HeldOut(
            self._task.held_out_losses,
            batches,
            accelerator=trainer.accelerator,
            draws=pace.draws,
        )
        return self._held_out

    def _choose_width(self, trainer: DiffusionTrainer, held_out: HeldOut) -> None:
        """Take the width of the average that is best at the end; the evaluation of the step becomes that of it."""
        power = trainer.power
        if power is None or len(power.widths) < 2:
            return

        saved = trainer.saved_weights()
        before = power.width
        # The width in use was evaluated a moment ago.
        found = {before: self.record.points[-1].evaluation}

        def loss() -> float:
            if power.width not in found:
                with saved.in_place():
                    found[power.width] = held_out.evaluate(trainer.bare)
            return found[power.width].loss

        power.choose(loss)
        losses = {width: evaluation.loss for width, evaluation in found.items()}
        self.record.widths = losses
        if power.width != before:
            point = Point(trainer.step, found[power.width])
            self.record.points[-1] = point
            if self.record.best is point:
                with saved.in_place():
                    self._keep(trainer, saved.taken(), trainer.step)
        shown = ", ".join(f"{loss:.4f} of width {width:.4g}" for width, loss in losses.items())
        logger.info(f"step {trainer.step}: held-out loss by width of the average: {shown}")

    def _keep(self, trainer: DiffusionTrainer, weights: dict[str, Tensor], step: int) -> None:
        if trainer.accelerator.is_main_process:
            self._best.path.parent.mkdir(exist_ok=True)
            trainer.save_beside(self._best.path.parent)
            self._best.save(weights, step)

    def _tell(self, trainer: DiffusionTrainer, point: Point) -> None:
        """Give the evaluation to the log and the trackers."""
        evaluation = point.evaluation
        values = {"held_out/loss": evaluation.loss}
        for (low, high), loss in zip(evaluation.bounds, evaluation.by_range):
            values[f"held_out/loss_{low:.2f}_{high:.2f}"] = loss
        trainer.accelerator.log(values, step=point.step)
        count = len(self.record.points)
        noise = f" +- {self.record.noise(count - 1):.4f}" if count > 1 else ""
        best = ", the best so far" if self.record.best is point else ""
        logger.info(f"step {point.step}: held-out loss {evaluation.loss:.4f}{noise}{best}")

    def _stop_if_over(self, trainer: DiffusionTrainer) -> None:
        patience = self._flags.stop_patience
        if patience is None or trainer.step >= trainer.max_steps:
            return
        outlook = Outlook(
            trainer.growth.plan,
            decays=self._train.lr_scheduler in DECAYING,
            warmup=trainer.warmup_steps,
        )
        reason = reason_to_stop(self.record.points, patience, outlook)
        if reason is None:
            return
        self.record.stopped = {
            "step": trainer.step,
            "of": trainer.max_steps,
            "reason": reason,
            "seconds_saved": self._cost_of_rest(trainer),
        }
        logger.info(f"step {trainer.step}: {reason}: training ends here.")

    def _cost_of_rest(self, trainer: DiffusionTrainer) -> float:
        """Seconds that the steps to come would take, from those of the latest ones."""
        plan = trainer.growth.plan
        step = trainer.step
        seconds: Sequence[float] = trainer.metrics.rows["seconds"][-RECENT:]
        recent = cost_between(plan, step - len(seconds), step) / len(seconds)
        return fmean(seconds) * cost_between(plan, step, plan.num_training_steps) / recent
