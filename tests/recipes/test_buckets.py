"""Recipes with buckets, several resolutions and shuffled tags: whole runs, resumed ones, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from autoprog_diffusion.growth import GrowthError

from ..tasks.tiny import write_images
from ..tasks.tiny_transformers import build_dit, save, write_classes
from ..tasks.training import same, weights
from .conftest import NewRun, Script, load_recipe


RECIPES: dict[str, Any] = {
    "sd": load_recipe("finetune_sd").FinetuneSD(),
    "dit": load_recipe("finetune_dit").FinetuneDiT(),
    "dreambooth": load_recipe("dreambooth").FinetuneSubject(),
}
FLAGS = ("--train_batch_size", 4, "--buckets", "--num_stages", 2, "--validation_prompts", "a", "--average", "off")


@pytest.fixture(autouse=True)
def _fresh(fresh_accelerate: None) -> None:
    """Every run starts as in a new process."""


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose captions are tags; 12 wide and large ones, 12 tall and small ones."""
    folder = write_images(tmp_path_factory.mktemp("tagged"))
    for row in range(24):
        size = (30, 50) if row % 2 else (96, 60)
        path = folder / f"{row:02d}.png"
        Image.open(path).convert("RGB").resize(size).save(path)
    file = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [json.dumps({**row, "text": f"{row['text']}, b, c, d"}) for row in rows]
    file.write_text("\n".join(lines))
    return folder


def flags_of(script: Script, images: Path) -> tuple[object, ...]:
    return ("--pretrained_model_name_or_path", script.model, "--train_data_dir", images, *FLAGS)


def test_a_run_with_everything_resumes_bit_identical(
    new_run: NewRun, script: Script, tagged: Path, tmp_path: Path
) -> None:
    others = write_images(tmp_path / "others", 4)
    flags = (*flags_of(script, tagged), "--validation_data_dir", others, "--bucket_resolutions", 32, 64)
    flags += ("--shuffle_tags", 3, "--keep_tags", 1, "--proportion_empty_prompts", 0.3, "--random_flip")
    flags += ("--max_train_steps", 8, "--checkpointing_steps", 3, "--evaluation_steps", 4, "--cache_dtype", "bfloat16")
    _, whole, _ = new_run(RECIPES["sd"], *flags)
    whole.train()
    report = whole.data_report
    assert report is not None
    assert "images train in buckets of aspect ratios" in report.table()
    assert "24 images train 36 times an epoch" in report.table()
    assert report.to_dict()["buckets"] == [
        {"width": 24, "height": 40, "resolution": 32, "images": 12},
        {"width": 40, "height": 24, "resolution": 32, "images": 12},
        {"width": 80, "height": 48, "resolution": 64, "images": 12},
    ]
    assert whole.epoch_batches == 9
    assert whole.held_out is not None
    assert {point.evaluation.losses.shape[1] for point in whole.held_out.record.points} == {4}
    _, resumed, _ = new_run(RECIPES["sd"], *flags, "--resume_from_checkpoint", "checkpoint-3")
    assert resumed.step == 3
    resumed.train()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


def test_what_cannot_be_placed_is_refused_by_name(
    new_run: NewRun, script: Script, tagged: Path, tmp_path: Path
) -> None:
    flags = (*flags_of(script, tagged), "--max_train_steps", 4, "--no-held_out")
    for more, words in (
        (("--train_batch_size", 16), r"buckets that hold fewer images than a batch of 16.*48x80 \(12\), 80x48 \(12\)"),
        (("--bucket_step", 12), "--bucket_step 12 is not a multiple of 8"),
        (("--bucket_resolutions", 32, 60), "--bucket_resolutions 60 is not a multiple of|--resolution 60"),
        (("--bucket_resolutions", 32, 64, "--resolution", 32), "is not the largest of --bucket_resolutions"),
        (("--max_aspect", 0.5), "--max_aspect 0.5 is not allowed"),
        (("--shuffle_tags", 3, "--keep_tags", 4), "--shuffle_tags 3 changes nothing"),
    ):
        with pytest.raises(GrowthError, match=words):
            new_run(RECIPES["sd"], *flags, *more)


def test_recipes_that_need_squares_refuse_buckets(
    new_run: NewRun, script: Script, tagged: Path, tmp_path: Path
) -> None:
    dit = save(tmp_path / "dit", build_dit, classes=3, learned_variance=True)
    classes = write_classes(tmp_path / "classes")
    with pytest.raises(GrowthError, match="--buckets is not possible: a DiT draws squares of one size alone"):
        new_run(RECIPES["dit"], "--pretrained_model_name_or_path", dit, "--train_data_dir", classes, *FLAGS[:3])
    subject = ("--instance_data_dir", script.images, "--instance_prompt", "a", "--with_prior_preservation")
    subject += ("--class_data_dir", tagged, "--class_prompt", "b", "--num_class_images", 24, "--no-held_out")
    flags = ("--pretrained_model_name_or_path", script.model, *subject, *FLAGS, "--max_train_steps", 4)
    with pytest.raises(GrowthError, match="--buckets is not possible with --with_prior_preservation"):
        new_run(RECIPES["dreambooth"], *flags)


def test_a_subject_trains_in_buckets(new_run: NewRun, script: Script, tmp_path: Path) -> None:
    subject = ("--instance_data_dir", script.images, "--instance_prompt", "a", "--no-held_out")
    flags = ("--pretrained_model_name_or_path", script.model, *subject, *FLAGS, "--max_train_steps", 2)
    _, trainer, _ = new_run(RECIPES["dreambooth"], *flags)
    trainer.train()
    assert trainer.step == 2


def test_flags_of_buckets_without_buckets_are_named(script: Script) -> None:
    from autoprog_diffusion.training.run import idle_flags_of

    args = RECIPES["sd"].parse(["--max_aspect", "3", "--keep_tags", "2"])
    sentences = " ".join(idle_flags_of(args))
    assert "--max_aspect has no effect" in sentences
    assert "--keep_tags has no effect" in sentences
