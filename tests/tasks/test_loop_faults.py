"""Faults in the middle of a run: it stops with an error, and the newest checkpoint stays whole."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from autoprog_diffusion.training.checkpoints import TrainingError, find_checkpoint

from .training import NewTrainer, same, weights


FLAGS = ("--max_train_steps", 6, "--train_batch_size", 4, "--checkpointing_steps", 2)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """A file may hold 100 kB and no more, as where the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_the_run_and_the_last_checkpoint_goes_on(new_trainer: NewTrainer, full_disk: None) -> None:
    whole = new_trainer(*FLAGS)
    whole.train()
    expected = weights(whole)
    trainer = new_trainer(*FLAGS)

    def fill(step: int) -> None:
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with pytest.raises(TrainingError, match=r"checkpoint-4 cannot be written.*checkpoint-2.*--resume_from_checkpoint"):
        trainer.train(fill)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    newest = find_checkpoint(trainer.root, "latest")
    assert newest is not None
    assert newest.name == "checkpoint-2"
    again = new_trainer(*FLAGS)
    assert again.resume("latest")
    again.train()
    assert same(weights(again), expected)


def test_an_output_folder_that_vanishes_stops_the_run(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer(*FLAGS)

    def replace(step: int) -> None:
        if step == 1:
            trainer.root.rmdir() if trainer.root.exists() else None
            trainer.root.write_text("a file where the checkpoints should be")

    with pytest.raises(TrainingError, match="checkpoint-2 cannot be written"):
        trainer.train(replace)


def test_a_gradient_that_is_not_finite_is_reported_before_a_checkpoint(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(*FLAGS)

    def poison(step: int) -> None:
        if step == 3:
            parameter = trainer.bare.conv_out.weight
            parameter.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))

    with pytest.raises(TrainingError, match=r"the gradient's norm is (inf|nan) at step 3, stage \d.*checkpoint-2"):
        trainer.train(poison)
    assert find_checkpoint(trainer.root, "latest").name == "checkpoint-2"
