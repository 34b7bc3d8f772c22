"""Where the trainer must stop, with a message that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.growth.errors import ConfigError, PlanError
from autoprog_diffusion.training.checkpoints import TrainingError

from .training import NewTrainer


def test_a_plan_of_other_steps_is_refused(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer("--max_train_steps", 4, "--train_batch_size", 4)
    trainer.growth.plan.save(tmp_path / "plan.json")
    with pytest.raises(PlanError, match=r"--growth_plan is for 4 steps, the run has 8: use --max_train_steps 4"):
        new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--growth_plan", tmp_path / "plan.json")


def test_a_later_stage_s_resolution_is_refused_before_any_training(new_trainer: NewTrainer) -> None:
    """0.65 of 64 pixels is 42, which the VAE does not divide; stage 0 would train well."""
    steps = []
    with pytest.raises(ConfigError, match="0.65"):
        new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--resolutions", 0.5, 0.65, 1, 1).train(
            steps.append
        )
    assert steps == []


def test_a_resolution_above_the_data_is_refused_before_any_training(new_trainer: NewTrainer) -> None:
    steps = []
    with pytest.raises(ConfigError, match="larger than the images"):
        new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--resolutions", 32, 64, 64, 128).train(
            steps.append
        )
    assert steps == []


def test_a_loss_that_is_not_finite_stops_the_run_with_the_newest_checkpoint(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--checkpointing_steps", 1)

    def poison(step: int) -> None:
        if step == 2:
            with torch.no_grad():
                trainer.bare.conv_out.bias.fill_(float("nan"))

    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 2, stage 2: lower --learning_rate.*checkpoint-2"
    ):
        trainer.train(poison)


NUMBERS_AND_NAMES = [
    ("--lr_scheduler", "zigzag"),
    ("--train_batch_size", 0),
    ("--gradient_accumulation_steps", 0),
    ("--checkpointing_steps", 0),
    ("--max_train_steps", -1),
]


def test_numbers_and_names_that_are_not_allowed_are_refused_at_once(new_trainer: NewTrainer) -> None:
    for flags in NUMBERS_AND_NAMES:
        steps = []
        with pytest.raises(GrowthError, match=str(flags[1])):
            new_trainer("--max_train_steps", 4, "--train_batch_size", 4, *flags).train(steps.append)
        assert steps == []
