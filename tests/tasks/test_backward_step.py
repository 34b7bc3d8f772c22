"""`--step_in_backward`: the recipes' loop with an optimizer that steps inside the backward pass."""

from __future__ import annotations

import pytest

from autoprog_diffusion.growth.errors import OrderError

from .training import NewTrainer, same, weights


FLAGS = ("--max_train_steps", 4, "--train_batch_size", 4, "--learning_rate", 1e-3, "--checkpointing_steps", 2)
AVERAGED = ("--use_ema", "--ema_decay", 0.5)
# A norm that nothing is clipped to.
UNCLIPPED = ("--max_grad_norm", 1e9)


@pytest.mark.parametrize(
    "flags",
    [
        (*AVERAGED, "--gradient_checkpointing"),
        pytest.param(
            ("--optimizer", "adamw4bit", "--trained_dtype", "bfloat16", "--mixed_precision", "bf16"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("--search", "zero_shot", "--max_train_steps", 12), marks=pytest.mark.slow),
    ],
    ids=["averaged", "rounded", "searched"],
)
def test_without_clipping_it_is_the_ordinary_run(new_trainer: NewTrainer, flags: tuple[object, ...]) -> None:
    ends = []
    for inside in (True, False):
        trainer = new_trainer(*FLAGS, *UNCLIPPED, *flags, *(["--step_in_backward"] if inside else []))
        trainer.train()
        trainer.finish()
        ends.append(weights(trainer))
    assert same(*ends)


def test_a_killed_run_goes_on_bit_identical(new_trainer: NewTrainer, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*FLAGS, *AVERAGED, "--max_grad_norm", 0.05, "--step_in_backward")
    whole = new_trainer(*flags)
    assert "the gradient of each is clipped to norm 0.05" in capsys.readouterr().out
    whole.train()
    whole.finish()
    resumed = new_trainer(*flags)
    assert resumed.resume("checkpoint-2")
    resumed.train()
    resumed.finish()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


def test_accumulation_is_refused(new_trainer: NewTrainer) -> None:
    with pytest.raises(OrderError, match="step_in_backward frees gradients that gradient_accumulation_steps=2 keeps"):
        new_trainer(*FLAGS, "--step_in_backward", "--gradient_accumulation_steps", 2)
