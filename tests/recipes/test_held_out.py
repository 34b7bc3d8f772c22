"""The recipes hold images out, evaluate them, keep and save the best weights, and stop, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from autoprog_diffusion.data.emoji import emoji_dataset
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.evaluation.held_out import HeldOut
from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.training.diffusion import DiffusionTrainer
from autoprog_diffusion.training.history import settings_of
from autoprog_diffusion.training.hold_out import holds_out, note_held_out
from autoprog_diffusion.training.manifest import MARKER, sealed
from autoprog_diffusion.training.run import run

from ..tasks.conftest import forget
from ..tasks.tiny import write_images
from ..tasks.tiny_transformers import build_dit, build_sd3, save, write_classes
from ..tasks.training import same, weights
from .conftest import NewRun, Script, load_recipe


SD = load_recipe("finetune_sd").FinetuneSD()
RECIPES: dict[str, Any] = {
    "lora": load_recipe("finetune_lora").FinetuneLora(),
    "dit": load_recipe("finetune_dit").FinetuneDiT(),
    "flow": load_recipe("finetune_flow").FinetuneFlow(),
    "sdxl": load_recipe("finetune_sdxl").FinetuneSDXL(),
    "dreambooth": load_recipe("dreambooth").FinetuneSubject(),
}
FLAGS = ("--max_train_steps", 6, "--train_batch_size", 4, "--num_stages", 2, "--use_ema", "--ema_decay", 0.5)
# So high a rate that the loss rises.
HIGH = ("--max_train_steps", 9, "--train_batch_size", 4, "--growth", "off", "--learning_rate", 0.3)
HIGH += ("--validation_prompts", "a", "--checkpointing_steps", 3, "--average", "off")


@pytest.fixture(autouse=True)
def _fresh(fresh_accelerate: None) -> None:
    """Every run starts as in a new process."""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to evaluate."""
    return write_images(tmp_path_factory.mktemp("others"), 6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, script: Script, sdxl_dir: Path, others: Path) -> dict[str, Any]:
    """Name of a recipe -> flags of its model, its data and what it evaluates."""
    classes = write_classes(tmp_path_factory.mktemp("classes"))
    dit = save(tmp_path_factory.mktemp("dit"), build_dit, classes=3, learned_variance=True)
    sd3 = save(tmp_path_factory.mktemp("sd3"), build_sd3)
    data = ("--train_data_dir", script.images, "--validation_data_dir", others)
    subject = ("--instance_data_dir", script.images, "--instance_prompt", "a", "--validation_data_dir", others)
    named = "--pretrained_model_name_or_path"
    return {
        "lora": (named, script.model, *data, "--rank", 2, "--lora_dropout", 0.1),
        "dit": (named, dit, "--train_data_dir", classes, "--validation_data_dir", classes),
        "flow": (named, sd3, *data, "--max_sequence_length", 6, "--resolution", 32),
        "sdxl": (named, sdxl_dir, *data),
        "dreambooth": (named, script.model, *subject),
    }


@pytest.mark.parametrize("name", ["lora", "dit", "flow", pytest.param("sdxl", marks=pytest.mark.slow), "dreambooth"])
def test_training_is_the_same_with_and_without_evaluations(
    new_run: NewRun, folders: dict[str, Any], name: str
) -> None:
    flags = (*FLAGS, *folders[name], "--validation_prompts", "lily" if name == "dit" else "a")
    _, plain, _ = new_run(RECIPES[name], *flags, "--no-held_out")
    plain.train()
    _, trainer, _ = new_run(RECIPES[name], *flags, "--overwrite_output_dir", "--evaluation_steps", 2)
    trainer.train()
    assert same(weights(plain), weights(trainer))
    assert plain.metrics.rows["loss"] == trainer.metrics.rows["loss"]
    assert plain.held_out is None
    assert trainer.held_out is not None
    record = trainer.held_out.record
    assert [point.step for point in record.points] == [0, 2, 4, 6]
    last = record.points[-1].evaluation
    trainer.finish()
    # What was evaluated last is what a fold leaves.
    if record.best is record.points[-1]:
        again = held_out_of(trainer).evaluate(trainer.bare)
        assert torch.allclose(again.losses, last.losses, rtol=1e-4)


def held_out_of(trainer: DiffusionTrainer) -> HeldOut:
    assert trainer.held_out is not None
    assert trainer.held_out._held_out is not None
    return trainer.held_out._held_out


def high_run(script: Script, output: Path, others: Path, *flags: object) -> DiffusionTrainer:
    forget()
    held_out = ("--validation_data_dir", others, "--evaluation_steps", 1, "--cache_dir", output.parent / "hub")
    words = [str(word) for word in (*script.flags(output), *HIGH, *held_out, *flags)]
    return run(SD, SD.parse(words))


def unet(output: Path) -> dict[str, Tensor]:
    return load_file(output / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def risen(script: Script, others: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DiffusionTrainer]:
    """A run whose last weights are not its best ones, and left it with a loss that is noted in its metrics."""
    output = tmp_path_factory.mktemp("risen") / "out"
    trainer = high_run(script, output, others)
    trainer.metrics.validations.append({"loss": held_out_of(trainer).evaluate(trainer.bare).loss})
    forget()
    return output, trainer


def test_the_best_weights_are_saved_as_they_were_evaluated(risen: tuple[Path, DiffusionTrainer]) -> None:
    output, trainer = risen
    values = json.loads((output / "held_out.json").read_text())
    best = values["best"]
    assert best["step"] < 9
    (row,) = [row for row in values["evaluations"] if row["step"] == best["step"]]
    assert row["loss"] == best["loss"] == min(row["loss"] for row in values["evaluations"][1:])
    saved = unet(output)
    assert all(torch.equal(saved[name], value) for name, value in trainer.bare.state_dict().items())
    assert trainer.metrics.validations == [{"loss": best["loss"]}]
    last = load_file(output / "checkpoints" / "checkpoint-9" / "model.safetensors")
    assert not all(torch.equal(last[name], value) for name, value in saved.items())
    first, *_, second = trainer.closing_words()
    assert f"{best['loss']:.4f} at its best" in first
    assert second.startswith(f"Best at step {best['step']} of 9; the best weights are saved, not the last ones")


def test_the_last_weights_are_saved_on_request(
    risen: tuple[Path, DiffusionTrainer], script: Script, others: Path, tmp_path: Path
) -> None:
    whole, trainer = risen
    output = tmp_path / "out"
    end = high_run(script, output, others, "--export", "last")
    last = load_file(whole / "checkpoints" / "checkpoint-9" / "model.safetensors")
    assert all(torch.equal(last[name], value) for name, value in unet(output).items())
    best = load_file(output / "best" / "weights.safetensors")
    assert all(torch.equal(best[name], value) for name, value in trainer.bare.named_parameters())
    assert "the last weights are saved (--export last); the best ones are in" in end.closing_words()[-1]


def test_a_run_stops_and_a_resumed_one_goes_back_to_its_own_best(
    risen: tuple[Path, DiffusionTrainer], script: Script, others: Path, tmp_path: Path
) -> None:
    whole, _ = risen
    output = tmp_path / "out"
    stopped = high_run(script, output, others, "--stop_patience", 2)
    values = json.loads((output / "held_out.json").read_text())
    assert values["stopped"]["step"] == stopped.step < 9
    assert values["stopped"]["reason"] == "the held-out loss did not fall for 2 evaluations"
    assert values["stopped"]["seconds_saved"] > 0
    assert f"; stopped at {stopped.step}; the rest would have cost " in stopped.closing_words()[-1]
    # Asked again, it saves the same and does not train on.
    end = high_run(script, output, others, "--stop_patience", 2, "--resume_from_checkpoint", "latest")
    assert end.step == stopped.step
    assert same_tensors(unet(output), stopped.bare.state_dict())
    # Without patience it goes on as the run that never stopped.
    end = high_run(script, output, others, "--resume_from_checkpoint", "latest")
    assert end.step == 9
    assert same_tensors(unet(output), unet(whole))
    assert best_of(output) == best_of(whole)


SMALL = ("--mixed_precision", "bf16", "--trained_dtype", "bfloat16", "--optimizer", "adamw8bit")


@pytest.mark.parametrize("flags", [("--frozen_dtype", "nf4"), SMALL], ids=["frozen", "trained"])
def test_weights_that_are_held_small_are_kept_as_they_are_saved(
    new_run: NewRun, script: Script, others: Path, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    words = (*script.flags(Path())[:4], *FLAGS, "--learning_rate", 1e-3, "--validation_prompts", "a", *flags)
    _, trainer, _ = new_run(SD, *words, "--validation_data_dir", others, "--evaluation_steps", 3)
    trainer.train()
    assert trainer.held_out is not None
    best = trainer.held_out.record.best
    assert best is not None
    assert best.step == 6
    kept = load_file(tmp_path / "out" / "best" / "weights.safetensors")
    trainer.finish()
    assert same_tensors(kept, {name: value.detach() for name, value in trainer.bare.named_parameters()})
    assert {value.dtype for value in kept.values()} == {torch.float32}


def test_the_best_adapters_are_saved_with_their_stage_embedding(
    new_run: NewRun, script: Script, others: Path, tmp_path: Path
) -> None:
    data = ("--train_data_dir", script.images, "--validation_data_dir", others)
    model = ("--pretrained_model_name_or_path", script.model, "--validation_prompts", "a")
    rates = ("--learning_rate", 0.3, "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 6)
    flags = (*model, *data, *FLAGS, *rates, "--no-use_ema", "--stage_embedding", "--evaluation_steps", 1)
    _, trainer, _ = new_run(RECIPES["lora"], *flags)
    rows = {}

    def note(step: int) -> None:
        embedding: Any = trainer.growth.stage_embedding
        rows[step] = embedding.table[embedding.stage].detach().clone()

    trainer.train(note)
    assert trainer.held_out is not None
    best = trainer.held_out.record.best
    assert best is not None
    assert best.step < 6
    kept = load_file(tmp_path / "out" / "best" / "weights.safetensors")
    trainer.finish()
    ends = {name: value.detach() for name, value in trainer.bare.named_parameters() if "lora_" in name}
    assert same_tensors(kept, ends)
    saved = load_file(tmp_path / "out" / "stage_embedding.safetensors")
    assert torch.equal(saved["stage"], rows[best.step])
    assert not torch.equal(saved["stage"], rows[6])


def best_of(output: Path) -> Any:
    return json.loads((output / "held_out.json").read_text())["best"]


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def many_images(folder: Path, count: int) -> Path:
    """Pictures that differ, each with a caption in a file beside it."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8), "RGB")
        coarse.resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture {index}")
    return folder


def test_a_share_of_the_data_is_held_out_and_said(new_run: NewRun, script: Script, tmp_path: Path) -> None:
    flags = ("--train_data_dir", many_images(tmp_path / "images", 40), "--held_out_share", 0.5)
    flags += ("--pretrained_model_name_or_path", script.model, "--train_batch_size", 4, "--max_train_steps", 2)
    _, trainer, _ = new_run(SD, *flags, "--validation_prompts", "a")
    assert trainer.data_report is not None
    reading = trainer.data_report.readings[0]
    assert (reading.found, reading.used) == (40, 20)
    assert reading.left_out["held out, for the held-out loss"].count == 20
    assert trainer.identity["images"] == 20


def test_images_that_the_default_data_holds_out_are_said_and_those_of_a_folder_are_not(script: Script) -> None:
    held_out = emoji_dataset("openmoji", size=4, split="held_out")
    for flags, notes in (([], 1), (["--validation_data_dir", str(script.images)], 0)):
        report = DataReport()
        report.add("trained on", "the default data").used = 1796
        note_held_out(held_out, SD.parse(flags), report)
        assert report.table().count("note: 102 other images of it are held out, for the held-out loss") == notes


def test_too_few_images_train_without(new_run: NewRun, script: Script) -> None:
    _, trainer, _ = new_run(SD, *script.flags(Path())[:4], "--max_train_steps", 2, "--validation_prompts", "a")
    assert trainer.held_out is None
    assert trainer.data_report is not None
    assert "24 images are too few to hold some out" in trainer.data_report.table()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--stop_patience", 0), "--stop_patience 0 is not allowed: use a number above 0"),
        (("--held_out_share", 0.9), "--held_out_share 0.9 is not allowed: use a number above 0, at most 0.5"),
        (("--evaluation_share", 0), "--evaluation_share 0.0 is not allowed"),
        (("--validation_data_dir", "{tmp}/none"), "none does not exist"),
        (("--validation_data_dir", "{tmp}/one"), "has 1 images: give 2 or more, or remove the flag"),
    ],
)
def test_bad_input_is_refused_by_name(
    new_run: NewRun, script: Script, tmp_path: Path, flags: tuple[object, ...], message: str
) -> None:
    write_images(tmp_path / "one", 1)
    words = [str(flag).replace("{tmp}", str(tmp_path)) for flag in flags]
    with pytest.raises((GrowthError, DataError), match=message):
        new_run(SD, *script.flags(tmp_path / "out")[:4], *words)


def test_a_run_that_began_without_goes_on_without(script: Script, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    folder.mkdir(parents=True)
    words = [str(word) for word in (*script.flags(tmp_path / "out"), "--resume_from_checkpoint", "latest")]
    args = SD.parse(words)
    accelerator = SD.make_accelerator(args)
    settings = settings_of(args)
    for held_out, expected in ((settings, True), ({**settings, "evaluation": {}}, False)):
        (folder / "run.json").write_text(json.dumps({"starts": [{"step": 0, "settings": held_out}]}))
        marker = {"step": 2, "written": 1, "files": {"run.json": (folder / "run.json").stat().st_size}}
        (folder / MARKER).write_text(json.dumps(sealed(marker, folder)))
        assert holds_out(args, accelerator) is expected


def test_the_held_out_loss_chooses_the_width_of_the_average(new_run: NewRun, folders: dict[str, Any]) -> None:
    flags = ("--max_train_steps", 6, "--train_batch_size", 4, "--num_stages", 2, "--evaluation_steps", 6)
    flags += ("--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", 1, "--learning_rate", 3e-2)
    flags += ("--average_widths", 0.28, 0.2, "--validation_prompts", "a", *folders["sdxl"], "--no-use_ema")
    _, trainer, _ = new_run(RECIPES["sdxl"], *flags)
    trainer.train()
    assert trainer.held_out is not None
    assert trainer.power is not None
    record = trainer.held_out.record
    losses = {row["width"]: row["loss"] for row in record.to_dict()["widths"]}
    assert list(losses) == [0.28, 0.2]
    best = min(losses, key=lambda width: losses[width])
    assert trainer.power.width == best
    assert record.points[-1].evaluation.loss == losses[best]
    trainer.finish()
    assert held_out_of(trainer).evaluate(trainer.bare).loss == pytest.approx(losses[best], rel=1e-4)
    # A finished run that is started again saves the same.
    trainer.checkpoint()
    ended = weights(trainer)
    _, again, _ = new_run(RECIPES["sdxl"], *flags, "--resume_from_checkpoint", "latest")
    again.resume("latest")
    again.train(pytest.fail)
    again.finish()
    assert same(ended, weights(again))
