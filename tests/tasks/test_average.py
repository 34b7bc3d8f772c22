"""The trainer's power-function average: what it holds, when it is there, and what a checkpoint says of it."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError, StateError
from autoprog_diffusion.growth.power_function import relative_width
from autoprog_diffusion.training.average import saves_memory
from autoprog_diffusion.training.saved_weights import averages_of

from .training import NewTrainer, same, weights


CONSTANT = ("--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 1, "--learning_rate", 1e-2)
BFLOAT16 = ("--trained_dtype", "bfloat16", "--optimizer", "adamw8bit", "--average", "on")
FLAGS = ("--max_train_steps", 8, "--train_batch_size", 4, *CONSTANT)


def literal_average(taken: list[dict[str, Tensor]], exponent: int) -> dict[str, Tensor]:
    """Weights of step t count (t^(gamma + 1) - (t - 1)^(gamma + 1)) / T^(gamma + 1), as fractions."""
    count = len(taken)
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in taken[0].items()}
    for step, values in enumerate(taken, start=1):
        share = Fraction(step ** (exponent + 1) - (step - 1) ** (exponent + 1), count ** (exponent + 1))
        for name, value in values.items():
            sums[name] += float(share) * value.double()
    return sums


def test_a_run_saves_the_average_of_its_weights(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(*FLAGS, "--no-stage_embedding", "--num_stages", 2)
    taken: list[dict[str, Tensor]] = []
    trainer.train(lambda step: taken.append(weights(trainer)))
    saved = trainer.saved_weights()
    raw = weights(trainer)
    with saved.in_place():
        evaluated = saved.taken()
    assert same(raw, weights(trainer))
    trainer.finish()
    expected = literal_average(taken, 3)
    last = weights(trainer)
    assert trainer.metrics.rows["trainable"][-1] < 1  # some have frozen on the way
    for name, value in last.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
        assert torch.equal(value, evaluated[name])
    assert not same(last, taken[-1])


def test_a_resumed_run_has_the_average_of_the_whole_one(new_trainer: NewTrainer) -> None:
    flags = (*FLAGS, "--checkpointing_steps", 4, "--average_widths", 0.2, 0.1633)
    whole = new_trainer(*flags)
    whole.train()
    whole.finish()
    resumed = new_trainer(*flags)
    assert resumed.resume("checkpoint-4")
    resumed.train()
    resumed.finish()
    assert same(weights(whole), weights(resumed))
    assert resumed.power is not None
    assert resumed.power.steps == 8


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        (CONSTANT, (False, True)),
        ((*CONSTANT, "--average", "off"), (False, False)),
        ((*CONSTANT, "--use_ema"), (True, False)),
        (("--lr_scheduler", "cosine"), (False, False)),
        (("--lr_scheduler", "constant", "--average", "on"), (False, True)),
    ],
)
def test_flags_say_which_average_there_is(
    new_trainer: NewTrainer, flags: tuple[object, ...], kinds: tuple[bool, bool]
) -> None:
    trainer = new_trainer("--max_train_steps", 8, "--train_batch_size", 4, *flags)
    assert (trainer.ema is not None, trainer.power is not None) == kinds


def test_an_average_of_a_decaying_schedule_is_said_to_add_little(
    new_trainer: NewTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    new_trainer("--max_train_steps", 8, "--train_batch_size", 4, "--lr_scheduler", "cosine", "--average", "on")
    assert "--average on adds little to --lr_scheduler cosine, which decays" in capsys.readouterr().out


def test_two_averages_are_refused(new_trainer: NewTrainer) -> None:
    with pytest.raises(ConfigError, match="--average on and --use_ema are two averages"):
        new_trainer(*FLAGS, "--average", "on", "--use_ema")


def test_widths_that_do_not_fit_the_run_are_refused(
    new_trainer: NewTrainer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"relative width 0.05 spans 0.4 of the 8 steps"):
        new_trainer(*FLAGS, "--average_widths", 0.05)
    short = new_trainer("--max_train_steps", 4, "--train_batch_size", 4, *CONSTANT)
    assert short.power is None
    assert "not averaged: a run of 4 steps is too short" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"relative width 0.4 does not exist"):
        new_trainer(*FLAGS, "--average_widths", 0.4)


def test_a_checkpoint_says_whether_there_is_an_average(new_trainer: NewTrainer) -> None:
    every = ("--checkpointing_steps", 4)
    new_trainer(*FLAGS, *every, "--average", "off").train()
    with pytest.raises(StateError, match=r"holds no average of the weights .* resume it with --average off"):
        new_trainer(*FLAGS, *every).resume("checkpoint-4")
    new_trainer(*FLAGS, *every, "--checkpoints_total_limit", 1).train()
    with pytest.raises(StateError, match=r"which this run would drop: resume it with --average on"):
        new_trainer(*FLAGS, *every, "--average", "off").resume("latest")


@pytest.mark.slow
def test_an_average_of_bfloat16_weights_is_saved_in_float32(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(*FLAGS, "--mixed_precision", "bf16", *BFLOAT16)
    trainer.train()
    power = trainer.power
    assert power is not None
    names = list(trainer.growth.layout.names)
    averages = {name: value.clone() for name, value in averages_of(power, names).items()}
    trainer.finish()
    rounded = 0
    for name, value in weights(trainer).items():
        assert value.dtype == torch.float32
        if name in averages and "time_embedding" not in name:
            assert torch.equal(value, averages[name]) or "bias" in name
            rounded += not torch.equal(value, value.bfloat16().float())
    assert rounded > 10
    assert power.width == relative_width(3.0)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ((), None),
        (("--optimizer", "adamw8bit"), "--optimizer adamw8bit"),
        (("--step_in_backward",), "--step_in_backward"),
        (("--direction", "window", "--num_stages", 2), "--direction window"),
    ],
)
def test_flags_that_save_memory_of_the_device_keep_the_average_off_it(
    new_trainer: NewTrainer, flags: tuple[object, ...], reason: str | None
) -> None:
    trainer = new_trainer(*FLAGS, *flags)
    assert saves_memory(trainer._train, trainer.growth) == reason
