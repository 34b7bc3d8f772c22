"""`run.yaml`: flags from a file, which nothing but text comes out of, and the same flags written beside a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from autoprog_diffusion.command_line import Flag, flags_of
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.tasks.arguments import DreamboothArguments, TextToImageArguments
from autoprog_diffusion.training.run_file import read_run_file, values_of, with_run_file, words_of
from autoprog_diffusion.training.run_file_text import FILE, KEPT, MARK, run_file_text, write_run_file
from autoprog_diffusion.vit.training.pretraining import Pretraining

from ..tasks.tiny import parse


FLAGS = flags_of(TextToImageArguments)


def file_of(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, *words: str, recipe: str = "sd") -> list[str]:
    return with_run_file(["--config", str(file_of(folder, text)), *words], recipe, FLAGS)


def test_every_kind_of_value_reaches_its_flag(tmp_path: Path) -> None:
    text = (
        "# a comment\ngrowth: off\nlearning-rate: 1e-4\nuse_ema: true\nheld_out: false\nmixed_precision: no\n"
        "resolutions: [0.5, 1]\nvalidation_prompts:\n- a red, apple\n- 'null'\nvariant: null\n"
        "seed: 3\nrevision: 'null'\n"
    )
    args = parse(*read(tmp_path, text))
    assert args.growth.growth == "off"
    assert args.train.learning_rate == 1e-4
    assert args.train.use_ema is True
    assert args.evaluation.held_out is False
    assert args.train.mixed_precision == "no"
    assert args.growth.resolutions == (0.5, 1)
    assert args.output.validation_prompts == ("a red, apple", "null")
    assert (args.model.variant, args.model.revision) == (None, "null")
    assert args.train.seed == 3


def test_the_command_line_wins_also_over_a_flag_that_would_silence_its_own(tmp_path: Path) -> None:
    text = "max_train_steps: 640\nseed: 3\nuse_ema: true\n"
    args = parse(*read(tmp_path, text, "--no-use-ema", "--seed=4"))
    assert (args.train.seed, args.train.use_ema, args.train.max_train_steps) == (4, False, 640)
    words = read(tmp_path, text, "--num_train_epochs", "2")
    assert "--max_train_steps=640" not in words
    assert "--seed=3" in words


REFUSED = {
    "unknown": ("seed: 1\nlerning_rate: 1\n", r"line 2: there is no flag lerning_rate\. Did you mean learning_rate"),
    "derived": ("ema_decay: 0.9\nsearch_seed: 1\n", r"line 2: there is no flag search_seed"),
    "nothing near": ("xyzzy: 1\n", r"there is no flag xyzzy\. --help lists the flags"),
    "itself": ("config: other.yaml\n", "there is no flag config"),
    "twice": ("seed: 1\nseed: 2\n", "line 2: seed is there twice"),
    "twice in two spellings": ("train_batch_size: 1\ntrain-batch-size: 2\n", "is there twice"),
    "recipe": ("recipe: sdxl\n", "is of the recipe sdxl, and this is sd"),
    "no mapping": ("- seed\n", "holds no flags"),
    "empty": ("", "holds no flags"),
    "broken": ("seed: [1\n", "is not YAML"),
    "nested": ("train:\n  seed:\n    deep: 1\n", "line 3: a flag takes text"),
    "list of lists": ("resolutions: [[1]]\n", "a flag takes text"),
    "object": ("output_dir: !!python/object/apply:os.system ['touch pwned']\n", "no tag such as"),
    "tag": ("output_dir: !!python/name:os.system x\n", r"no tag such as 'tag:yaml.org,2002:python/name:os.system'"),
    "tag in a list": ("validation_prompts: [!!python/name:os.system x]\n", "no tag such as"),
    "switch": ("use_ema: 3\n", r"use_ema '3' is not allowed: use true or false"),
    "one value": ("seed: [1, 2]\n", "seed takes one value"),
    "null": ("seed: null\n", "seed needs a value"),
    "a flag as a value": ("validation_prompts: [--overwrite_output_dir]\n", "begins with two hyphens"),
    "of accelerate": ("compute_environment: LOCAL_MACHINE\n", "accelerate launch --config_file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_flag_or_no_value_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)
    assert not Path("pwned").exists()


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=message):
            read_run_file(path)
    path = tmp_path / "bytes.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_run_file(path)
    path.write_text("a" * (2**20 + 1))
    with pytest.raises(ConfigError, match="too many"):
        read_run_file(path)
    with pytest.raises(ConfigError, match="needs the name"):
        with_run_file(["--config"], "sd", FLAGS)


def test_files_that_grow_while_they_are_read_do_not(tmp_path: Path) -> None:
    lines = ["a0: &a0 x"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ConfigError, match="a flag takes text"):
        read_run_file(file_of(tmp_path, "\n".join(lines)))
    with pytest.raises(ConfigError, match="is not YAML|a flag takes text"):
        read_run_file(file_of(tmp_path, "a: " + "[" * 20_000))


GIVEN = (
    "--output_dir", "out: 1 # x", "--validation_prompts", "null", "yes", "12", "\u00e9 \U0001f600", "two\nlines: x",
    "", "~", "--no-held_out", "--learning_rate", "1e-05", "--growth=off", "--boundaries", "0.25", "0.5",
    "--variant", "None", "--resolution", "064", "--resume_from_checkpoint", "latest", "--overwrite_output_dir",
)  # fmt: skip


def text_of(words: tuple[str, ...], **chosen: object) -> str:
    return run_file_text("sd", words, FLAGS, chosen=chosen, versions={"torch": "2.13.0"}, num_processes=1)


def test_what_is_written_is_read_back_as_the_same_flags(tmp_path: Path) -> None:
    text = text_of(GIVEN, cpu_threads=2, learning_rate=1)
    words = words_of(read_run_file(file_of(tmp_path, text)), FLAGS)
    kept = values_of(GIVEN[:-3], FLAGS)
    assert values_of(words, FLAGS) == {**kept, "cpu_threads": "2"}
    assert parse(*words).output.validation_prompts == parse(*GIVEN[:-3]).output.validation_prompts
    # Another reader of YAML takes words for words.
    plain = yaml.safe_load(text)
    assert plain["growth"] == "off"
    assert plain["validation_prompts"] == ["null", "yes", 12, "\u00e9 \U0001f600", "two\nlines: x", "", "~"]
    assert plain["recipe"] == "sd"
    assert "overwrite_output_dir" not in plain


def test_a_file_that_a_user_wrote_is_kept(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("seed: 1  # mine\n")
    write_run_file(tmp_path, text_of(("--seed", "1")))
    write_run_file(tmp_path, text_of(("--seed", "2")))
    assert (tmp_path / KEPT).read_text() == "seed: 1  # mine\n"
    assert (tmp_path / FILE).read_text().startswith(MARK)
    assert "seed: 2" in (tmp_path / FILE).read_text()


def test_several_processes_are_named_with_their_launcher() -> None:
    text = run_file_text("sd", (), FLAGS, chosen={}, versions={}, num_processes=2)
    assert "accelerate launch --num_processes 2 -m autoprog_diffusion train --config run.yaml" in text


def test_presets_of_vit_are_flags_of_a_file(tmp_path: Path) -> None:
    script = Pretraining()
    path = file_of(tmp_path, "recipe: vit\npreset: deit_tiny\nepochs: 3\nmodel_kwargs: {hidden_size: 96}\n")
    words = with_run_file(["--config", str(path)], "vit", script.flags())
    args = script.parse(words)
    assert args.train.epochs == 3
    assert args.model.model_kwargs == {"hidden_size": 96}
    assert args.given == ("epochs", "model_kwargs")
    assert re.search("deit", args.model.model)


def test_flags_know_their_kinds() -> None:
    flags = flags_of(DreamboothArguments)
    assert flags["buckets"] == Flag("buckets", switch=True)
    assert flags["mixed_precision"] == Flag("mixed_precision", choices=("no", "fp16", "bf16"), optional=True)
    assert flags["average_widths"].many
    assert flags["max_train_steps"].optional
    assert "given" not in flags
    assert "search_seed" not in flags
