"""Every optimizer of the recipes: its settings, its state in checkpoints, and bfloat16 weights."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.optimizer_offload import is_offloaded
from autoprog_diffusion.training.flag_checks import idle_flags
from autoprog_diffusion.training.optimizers import OPTIMIZERS, ROUNDING, check_optimizer, make_optimizer

from .tiny import parse
from .training import FLAGS, NewTrainer, same, weights


CPU = torch.device("cpu")
# bitsandbytes is not installed with the tests.
HERE = tuple(name for name in OPTIMIZERS if name != "adamw8bit_bnb")
KILLED = (*FLAGS, "--checkpointing_steps", 2, "--use_ema", "--ema_decay", 0.5)
ROUNDED = ("--trained_dtype", "bfloat16", "--mixed_precision", "bf16")


def check_killed_run(new_trainer: NewTrainer, *flags: object) -> None:
    """A run that is killed after step 3 and resumed at the checkpoint of step 2 ends as the whole run does."""
    whole = new_trainer(*KILLED, *flags)
    whole.train()
    whole.finish()
    resumed = new_trainer(*KILLED, *flags)
    assert resumed.resume("checkpoint-2")
    resumed.train()
    resumed.finish()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]
    # Also bfloat16 weights are saved in float32, as the average of them is.
    assert {value.dtype for value in weights(whole).values()} == {torch.float32}


@pytest.mark.parametrize(
    "name", [name if name == "adamw8bit" else pytest.param(name, marks=pytest.mark.slow) for name in HERE]
)
def test_a_killed_run_goes_on_bit_identical(new_trainer: NewTrainer, name: str) -> None:
    check_killed_run(new_trainer, "--optimizer", name)


@pytest.mark.parametrize(
    "name", [name if name == "adamw4bit" else pytest.param(name, marks=pytest.mark.slow) for name in ROUNDING]
)
def test_a_killed_run_of_bfloat16_weights_goes_on_bit_identical(new_trainer: NewTrainer, name: str) -> None:
    check_killed_run(new_trainer, "--optimizer", name, *ROUNDED)


def test_what_is_saved_is_what_was_trained_in_bfloat16(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(*FLAGS, "--optimizer", "adamw8bit", *ROUNDED)
    trainer.train()
    trained = weights(trainer)
    names = {name for name, value in trained.items() if value.dtype == torch.bfloat16}
    assert {name for name, value in trained.items() if value.dim() == 1} == set(trained) - names
    # The fold adds the stage embedding's row to this bias.
    del trained["time_embedding.linear_2.bias"]
    trainer.finish()
    saved = weights(trainer)
    assert all(torch.equal(value.float(), saved[name]) for name, value in trained.items())


@pytest.mark.parametrize("name", ["adamw8bit", "adafactor"])
def test_a_rate_of_the_command_line_is_the_resumed_run_s(new_trainer: NewTrainer, name: str) -> None:
    """The low-bit optimizers keep their rate in a tensor."""
    flags = ("--optimizer", name, "--train_batch_size", 4, "--checkpointing_steps", 2, "--max_train_steps", 4)
    new_trainer(*flags, "--learning_rate", 1e-3).train()
    resumed = new_trainer(*flags, "--learning_rate", 1e-4)
    assert resumed.resume("checkpoint-2")
    resumed.train()
    assert [float(group["lr"]) for group in resumed.optimizer.param_groups] == pytest.approx([1e-4])


def test_every_optimizer_has_the_settings_of_the_flags() -> None:
    flags = ("--learning_rate", 0.01, "--adam_beta1", 0.8, "--adam_beta2", 0.9, "--adam_epsilon", 1e-6)
    for name in HERE:
        args = parse(*flags, "--adam_weight_decay", 0.3, "--optimizer", name).train
        (group,) = make_optimizer([nn.Parameter(torch.zeros(2))], args, 1).param_groups
        assert float(group["lr"]) == pytest.approx(0.01)
        assert group["weight_decay"] == 0.3
        if name != "adafactor":
            assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)


@pytest.mark.parametrize("name", HERE)
def test_this_machine_can_do_all_of_them(name: str) -> None:
    check_optimizer(parse("--optimizer", name).train, CPU, "no")


BFLOAT16_WEIGHTS = [
    (("--optimizer", "adamw"), "bf16", r"--optimizer adamw does not.*Use one of adamw8bit, adamw4bit, adamw_fp8"),
    (("--optimizer", "adafactor"), "bf16", "--optimizer adafactor does not"),
    (("--use_8bit_adam",), "bf16", "--optimizer adamw8bit_bnb does not"),
    (("--optimizer", "adamw8bit"), "no", "needs --mixed_precision bf16, it is no"),
    (("--optimizer", "adamw8bit"), "fp16", "needs --mixed_precision bf16, it is fp16"),
]


def test_bfloat16_weights_are_refused_where_they_would_lose() -> None:
    for flags, precision, message in BFLOAT16_WEIGHTS:
        with pytest.raises(ConfigError, match=message):
            check_optimizer(parse("--trained_dtype", "bfloat16", *flags).train, CPU, precision)


@pytest.mark.parametrize("inside", [(), ("--step_in_backward", "--gradient_accumulation_steps", 1)])
def test_state_in_cpu_memory_changes_nothing(new_trainer: NewTrainer, inside: tuple[object, ...]) -> None:
    """A run that starts without, is killed and goes on with it."""
    whole = new_trainer(*KILLED, *inside)
    whole.train()
    resumed = new_trainer(*KILLED, *inside, "--offload_optimizer")
    assert is_offloaded(resumed.optimizer)
    assert resumed.resume("checkpoint-2")
    resumed.train()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


def test_state_in_cpu_memory_is_refused_for_bitsandbytes() -> None:
    with pytest.raises(ConfigError, match="--offload_optimizer was never tried with bitsandbytes"):
        check_optimizer(parse("--use_8bit_adam", "--offload_optimizer").train, CPU, "no")


def test_two_optimizers_are_refused() -> None:
    with pytest.raises(ConfigError, match="--use_8bit_adam is --optimizer adamw8bit_bnb, and --optimizer adafactor"):
        check_optimizer(parse("--use_8bit_adam", "--optimizer", "adafactor").train, CPU, "no")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize("flags", [("--use_8bit_adam",), ("--optimizer", "adamw8bit_bnb")])
def test_without_bitsandbytes_the_message_says_what_would_do(flags: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install.*--optimizer adamw8bit is torchao's"):
        check_optimizer(parse(*flags).train, CPU, "no")


def test_an_optimizer_that_the_device_cannot_do_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"--optimizer adamw_fp8 does not work on this xpu device: .*Use --opt"):
        check_optimizer(parse("--optimizer", "adamw_fp8").train, torch.device("xpu"), "no")


def test_without_torchao_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)  # as if it were not there
    with pytest.raises(ConfigError, match=r"needs torchao: pip install 'autoprog-diffusion\[low_precision\]'"):
        check_optimizer(parse("--optimizer", "adamw4bit").train, CPU, "no")


def test_flags_of_adam_are_named_where_they_have_no_effect() -> None:
    given = {"adam_beta1", "adam_weight_decay", "optimizer"}
    values = {"optimizer": "adafactor", "lr_scheduler": "constant"}
    found = idle_flags(given, values, set())
    assert found == ["--adam_beta1 has no effect: --optimizer adafactor has no such setting."]


def test_the_fused_optimizer_is_the_default_here_and_a_checkpoint_says_which_one(new_trainer: NewTrainer) -> None:
    flags = ("--train_batch_size", 4, "--checkpointing_steps", 2, "--max_train_steps", 4, "--learning_rate", 1e-3)
    ends = []
    for choice, fused in (("auto", True), ("off", None)):
        whole = new_trainer(*flags, "--fused_optimizer", choice)
        assert whole.optimizer.param_groups[0]["fused"] is fused
        whole.train()
        resumed = new_trainer(*flags)
        assert resumed.resume("checkpoint-2")
        assert resumed.optimizer.param_groups[0]["fused"] is fused
        resumed.train()
        assert same(weights(whole), weights(resumed))
        ends.append(weights(whole))
    first, second = ends
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-5)


def test_a_fused_optimizer_that_cannot_be_is_refused(new_trainer: NewTrainer) -> None:
    with pytest.raises(ConfigError, match="--fused_optimizer on is of torch's AdamW"):
        new_trainer("--train_batch_size", 4, "--fused_optimizer", "on", "--optimizer", "adafactor")
    with pytest.raises(ConfigError, match="skips the steps of a gradient scaler"):
        check_optimizer(parse("--fused_optimizer", "on").train, torch.device("cpu"), "fp16")
