"""Between readings nothing waits for the device: no number is taken out of a tensor."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autoprog_diffusion.growth.watch.training import FIRST_STEPS
from autoprog_diffusion.training.checkpoints import TrainingError
from autoprog_diffusion.training.time_left import TimeLeft

from .training import NewTrainer, same, weights


FLAGS = ("--max_train_steps", 10, "--train_batch_size", 4, "--num_stages", 2, "--lr_scheduler", "constant")


EPOCH = 6  # steps


class Waits(TorchDispatchMode):
    """Counts numbers that are taken out of tensors, for which the host waits, but for those of `_choices`.

    That one looks at a tensor which is on the CPU on every machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            callers = {frame.name for frame in traceback.extract_stack()}
            self.count += "_choices" not in callers
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("average", ["on", "off"])
def test_a_step_that_is_not_read_waits_for_nothing(new_trainer: NewTrainer, average: str) -> None:
    trainer = new_trainer(*FLAGS, "--log_interval", 4, "--average", average)
    # Steps of a tiny model on a busy machine may take longer than the readings let them.
    trainer._readings._seconds = 0.0
    counts = []
    known = []

    def look(step: int) -> None:
        trainer._readings._seconds = 0.0
        counts.append(waits.count)
        known.append(len(trainer.metrics))
        waits.count = 0

    with Waits() as waits:
        trainer.train(look)
    second = trainer.growth.plan.stages[1].start
    read = {4, 8, 10, second}
    # An epoch draws a seed, and growth looks at the first steps of a stage.
    others = {1, EPOCH + 1}
    for start in (0, second):
        others.update(range(start + 1, start + FIRST_STEPS + 1))
    waited = {step for step, count in enumerate(counts, start=1) if count}
    assert read <= waited <= read | others
    assert {3, 9} <= set(range(1, 11)) - read - others
    assert known == [max([each for each in read if each <= step], default=0) for step in range(1, 11)]


def test_how_often_losses_are_read_changes_nothing(new_trainer: NewTrainer) -> None:
    runs = []
    for every in (1, 3):
        trainer = new_trainer(*FLAGS, "--log_interval", every)
        trainer.train()
        runs.append(trainer)
    first, second = runs
    assert first.metrics.rows["loss"] == second.metrics.rows["loss"]
    assert first.metrics.rows["stage"] == second.metrics.rows["stage"]
    assert min(second.metrics.rows["seconds"]) > 0
    assert same(weights(first), weights(second))


def test_a_checkpoint_holds_all_steps_before_it(new_trainer: NewTrainer) -> None:
    flags = (*FLAGS, "--log_interval", 7, "--checkpointing_steps", 3)
    new_trainer(*flags).train()
    resumed = new_trainer(*flags)
    resumed.resume("checkpoint-6")
    assert len(resumed.metrics) == 6


def test_a_loss_that_is_no_number_is_named_by_its_step_and_in_no_checkpoint(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(*FLAGS, "--log_interval", 10, "--checkpointing_steps", 5)
    trainer._readings._seconds = 0.0
    with pytest.raises(TrainingError, match="is nan at step 3, stage 1.*No checkpoint is complete"):
        trainer.train(lambda step: _spoil(trainer) if step == 3 else None)


def test_flops_of_later_stages_are_those_that_would_be_counted(
    new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for counts_again in (True, False):
        with monkeypatch.context() as patch:
            if counts_again:
                patch.setattr(TimeLeft, "exact", None)
            trainer = new_trainer(*FLAGS)
            trainer.train()
        runs.append(trainer)
    counted, known = runs
    assert known.metrics.rows["flops"] == counted.metrics.rows["flops"]
    assert len(set(known.metrics.rows["flops"])) == 2
    assert same(weights(counted), weights(known))


def _spoil(trainer: Any) -> None:
    with torch.no_grad():
        next(trainer.bare.parameters()).fill_(torch.nan)
