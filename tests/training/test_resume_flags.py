"""Flags mean what they say: what contradicts another flag, the run or the machine is refused or said at the start."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.training.build import make_accelerator
from autoprog_diffusion.training.flag_checks import check_tracker, check_warmup, given_flags
from autoprog_diffusion.training.recipe_arguments import check_arguments
from autoprog_diffusion.training.run import idle_flags_of
from autoprog_diffusion.vit.training.pretraining import Pretraining

from ..recipes.conftest import load_recipe
from ..tasks.conftest import forget


SD = load_recipe("finetune_sd").FinetuneSD()
DREAMBOOTH = load_recipe("dreambooth").FinetuneSubject()
VIT = Pretraining()


def test_epochs_on_the_command_line_win_over_a_default_of_steps() -> None:
    assert SD.parse([]).train.max_train_steps == 640
    for words in (["--num_train_epochs", "1"], ["--num-train-epochs=1"]):
        assert SD.parse(words).train.max_train_steps is None
    assert SD.parse(["--num_train_epochs", "1", "--max_train_steps", "9"]).train.max_train_steps == 9
    assert VIT.parse([]).train.max_train_steps == 600
    assert VIT.parse(["--epochs", "2"]).train.max_train_steps is None
    train = VIT.parse(["--epochs", "2", "--warmup_epochs", "0.5"]).train
    assert (train.warmup_steps, train.warmup_epochs) == (None, 0.5)
    assert VIT.parse(["--warmup_epochs", "1", "--warmup_steps", "7"]).train.warmup_steps == 7


A_FLAG_WITHOUT = [
    (
        SD,
        "--num_train_epochs 1 --max_train_steps 9",
        "--num_train_epochs has no effect: --max_train_steps 9 says it.",
    ),
    (SD, "--no-use_ema --ema_decay 0.5", "--ema_decay has no effect: it needs --use_ema."),
    (SD, "--growth off --num_stages 3", "--num_stages has no effect: --growth off"),
    (SD, "--center_crop", "--center_crop has no effect: it needs --no-cache_latents."),
    (SD, "--lr_scheduler constant --lr_warmup_steps 9", "constant_with_warmup does."),
    (SD, "--dataset_config_name a", "it needs --dataset_name."),
    (DREAMBOOTH, "--no-with_prior_preservation --prior_loss_weight 2", "it needs --with_prior_preservation."),
    (VIT, "--epochs 3 --max_train_steps 9", "--epochs has no effect: --max_train_steps 9 says it."),
]


def test_a_flag_without_effect_is_said() -> None:
    for script, words, sentence in A_FLAG_WITHOUT:
        (found,) = idle_flags_of(script.parse(words.split()))
        assert sentence in found


FLAGS = ["", "--use_ema --ema_decay 0.5", "--growth off --search none", "--seed 3"]


def test_flags_with_an_effect_are_not_mentioned() -> None:
    for words in FLAGS:
        assert idle_flags_of(SD.parse(words.split())) == []


VALUES = [
    "--seed -1",
    "--seed 4294967295",
    "--learning_rate inf",
    "--adam_beta1 1",
    "--adam_epsilon 0",
    "--noise_offset nan",
    "--adam_weight_decay -1",
    "--max_grad_norm 0",
    "--lr_warmup_steps -3",
    "--checkpointing_steps 0",
    "--checkpoints_total_limit 0",
    "--checkpoints_total_limit -1",
    "--validation_steps 0",
    "--ema_decay 1.5",
    "--dataloader_num_workers -1",
    "--num_train_epochs 0",
    "--log_interval 0",
]


def test_values_that_only_fail_later_are_refused() -> None:
    for words in VALUES:
        flag, value = words.split()
        with pytest.raises(ConfigError, match=rf"{flag} .* is not allowed: use "):
            check_arguments(SD.parse([flag, value]))


VALUES_THAT_ONLY_FAIL = [
    "--opt_betas 0.9 1",
    "--seed -1",
    "--warmup_steps -1",
    "--memory -1",
    "--opt_eps 0",
    "--lr inf",
]


def test_values_that_only_fail_later_are_refused_by_vit() -> None:
    for words in VALUES_THAT_ONLY_FAIL:
        with pytest.raises(ConfigError, match="is not allowed: use "):
            VIT.parse(words.split())


def test_a_warm_up_longer_than_the_run_is_refused_if_it_was_asked_for() -> None:
    with pytest.raises(ConfigError, match="--lr_warmup_steps: the warm-up of 500 steps is longer than the run of 4"):
        check_warmup("lr_warmup_steps", 500, 4, ("lr_warmup_steps",))
    note = check_warmup("lr_warmup_steps", 500, 4, ())
    assert note is not None
    assert "is a default" in note
    assert check_warmup("lr_warmup_steps", 4, 4, ("lr_warmup_steps",)) is None


@pytest.mark.parametrize("tracker", ["wandb", "comet_ml", "mlflow", "clearml"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_line_that_installs_it(tracker: str) -> None:
    if importlib.util.find_spec(tracker) is not None:
        # There is nothing to refuse; continuous integration has none of them.
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(ConfigError, match=f"--report_to {tracker} needs a package.*: pip install {tracker[:5]}"):
        check_arguments(SD.parse(["--report_to", tracker]))


def test_trackers_that_are_there_pass() -> None:
    for name in ("none", "tensorboard", "all"):
        check_tracker(name)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is possible on a GPU")
def test_a_precision_that_the_machine_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = SD.parse(["--output_dir", str(tmp_path)])
    for given in ("fp16", None):
        forget()
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        with pytest.raises(ConfigError, match="--mixed_precision fp16.* is not possible here"):
            make_accelerator(args.output, accumulation=1, mixed_precision=given, seed=0)
    forget()


def test_the_given_flags_are_noted_with_the_settings() -> None:
    assert given_flags(["--a-b", "1", "--no-c", "--d=--e", "-x"]) == ("a_b", "c", "d")
    assert asdict(SD.parse(["--seed", "1", "--no-use_ema"]))["given"] == ("seed", "use_ema")
