"""The trainer killed and started again: bit for bit the run that was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprog_diffusion.growth.errors import StateError

from .training import FLAGS, NewTrainer, same, weights


@pytest.mark.parametrize("wanted", [pytest.param("latest", marks=pytest.mark.slow), "checkpoint-2"])
def test_a_resumed_run_ends_bit_identical(new_trainer: NewTrainer, tmp_path: Path, wanted: str) -> None:
    flags = (*FLAGS, "--use_ema", "--ema_decay", 0.5, "--checkpointing_steps", 2, "--resolutions", 0.5, 0.5, 1, 1)
    whole = new_trainer(*flags)
    whole.train()
    whole.finish()
    resumed = new_trainer(*flags)
    assert resumed.resume(wanted)
    assert resumed.step == {"latest": 4, "checkpoint-2": 2}[wanted]
    resumed.train()
    resumed.finish()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


@pytest.mark.slow
def test_a_run_resumed_within_a_search_ends_bit_identical(new_trainer: NewTrainer) -> None:
    flags = ("--max_train_steps", 20, "--train_batch_size", 4, "--checkpointing_steps", 7, "--search", "zero_shot")
    whole = new_trainer(*flags)
    whole.train()
    whole.finish()
    for wanted in ("checkpoint-7", "checkpoint-14"):
        resumed = new_trainer(*flags)
        assert resumed.resume(wanted)
        resumed.train()
        resumed.finish()
        assert resumed.growth.plan == whole.growth.plan
        assert same(weights(whole), weights(resumed))


def test_a_finished_run_can_be_resumed_and_does_nothing(new_trainer: NewTrainer) -> None:
    flags = ("--max_train_steps", 4, "--train_batch_size", 4, "--checkpointing_steps", 4)
    whole = new_trainer(*flags)
    whole.train()
    whole.finish()
    again = new_trainer(*flags)
    assert again.resume("latest")
    again.train(pytest.fail)
    again.finish()
    assert same(weights(whole), weights(again))


def test_there_is_nothing_to_resume_at_first(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(*FLAGS)
    assert trainer.resume("latest") is False
    assert trainer.step == 0
    with pytest.raises(StateError, match=r"checkpoint-7 is not a complete checkpoint"):
        trainer.resume("checkpoint-7")


def test_a_checkpoint_of_another_plan_is_refused(new_trainer: NewTrainer) -> None:
    flags = ("--train_batch_size", 4, "--checkpointing_steps", 2)
    new_trainer("--max_train_steps", 4, *flags).train()
    with pytest.raises(StateError, match="growth plan"):
        new_trainer("--max_train_steps", 4, "--order", "prefix", *flags).resume("latest")


def test_another_number_of_steps_extends_the_run_to_its_exact_end(new_trainer: NewTrainer) -> None:
    # Four steps are too few for an average.
    flags = ("--train_batch_size", 4, "--checkpointing_steps", 2, "--average", "off")
    new_trainer("--max_train_steps", 4, *flags).train()
    longer = new_trainer("--max_train_steps", 8, *flags)
    assert longer.resume("checkpoint-2")
    longer.train()
    assert (longer.step, longer.growth.plan.num_training_steps) == (8, 8)


def test_resume_where_accumulation_does_not_divide_an_epoch(new_trainer: NewTrainer) -> None:
    """24 images, 4 batches of 6, 3 of them a step: 2 steps an epoch as Diffusers rounds, the second of one batch."""
    flags = ("--num_train_epochs", 3, "--train_batch_size", 6, "--gradient_accumulation_steps", 3)
    flags += ("--checkpointing_steps", 1, "--num_stages", 2)
    whole = new_trainer(*flags)
    assert (whole.epoch_steps, whole.max_steps) == (2, 6)
    drawn = []
    loss = whole.task.loss
    whole.task.loss = lambda model, batch: drawn.append(batch["index"].tolist()) or loss(model, batch)
    names = [f"stage {stage}, {blocks} blocks, 64 pixels" for stage in (1, 2) for blocks in range(11)]
    whole.metrics.flops = dict.fromkeys(names, 1)  # no pass beside the training's
    whole.train()
    assert len(drawn) == 12
    for epoch in range(3):
        rows = sum(drawn[4 * epoch : 4 * epoch + 4], [])
        assert sorted(rows) == list(range(24))
    resumed = new_trainer(*flags)
    assert resumed.resume("checkpoint-3")
    resumed.train()
    assert same(weights(whole), weights(resumed))
