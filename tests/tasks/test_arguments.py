from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest

from .tiny import parse


def test_every_group_has_defaults() -> None:
    args = parse()
    assert args.model.pretrained_model_name_or_path is None
    assert args.data.train_data_dir is None
    assert args.train.max_train_steps is None
    assert args.growth.num_stages == 4
    assert args.output.output_dir == "sd-model-finetuned"


def test_flags_have_no_group_prefix_and_reach_their_field() -> None:
    args = parse(
        "--train_data_dir", "images", "--resolution", 96, "--no-cache_latents", "--train_batch_size", 3,
        "--snr_gamma", 5.0, "--use_ema", "--order", "suffix", "--resolutions", 0.5, 1, "--boundaries", 100,
        "--validation_prompts", "a cat", "a dog", "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    assert args.data.train_data_dir == "images"
    assert args.data.resolution == 96
    assert args.data.cache_latents is False
    assert args.train.train_batch_size == 3
    assert args.train.snr_gamma == 5.0
    assert args.train.use_ema is True
    assert args.growth.order == "suffix"
    assert args.growth.resolutions == (0.5, 1.0)
    assert args.growth.boundaries == (100,)
    assert args.output.validation_prompts == ("a cat", "a dog")
    assert args.output.resume_from_checkpoint == "latest"


def test_hyphens_are_taken_for_underscores_and_the_last_flag_wins() -> None:
    assert parse("--max-train-steps", 5, "--max_train_steps", 7).train.max_train_steps == 7
    assert parse("--use_ema", "--no-use_ema").train.use_ema is False


def test_names_are_unique_over_the_groups() -> None:
    """But for what `GrowthArguments` derives, which is no flag."""
    args = parse()
    groups = [value for value in vars(args).values() if is_dataclass(value)]
    names = [field.name for group in groups for field in fields(group)]
    assert {name for name in names if names.count(name) > 1} == {"ema_decay"}


@pytest.mark.parametrize(
    "flags",
    [
        ("--nonsense", 1),
        ("--order", "random"),
        ("--growth", "maybe"),
        ("--prediction_type", "x0"),
        ("--num_stages", "two"),
        ("--image_interpolation_mode", "sinc"),
    ],
)
def test_unknown_flags_and_choices_are_refused(flags: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*flags)
    assert caught.value.code == 2
    assert str(flags[0]).lstrip("-") in capsys.readouterr().err.replace("-", "_").lstrip("_")
