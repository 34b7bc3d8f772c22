"""What a run says of its data: one table at the start, and in run.json; and lists of captions after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.training.run import run

from ..tasks.training import same, weights
from .conftest import NewRun, Script, load_recipe


RECIPES = {name: load_recipe(name) for name in ("finetune_sd", "dreambooth", "finetune_dit")}
FLAGS = ("--train_batch_size", 2, "--max_train_steps", 6, "--num_stages", 2, "--validation_prompts", "a")


def write(folder: Path, names: list[str]) -> Path:
    for row, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (40 * row % 256, 200, 90)).save(path)
    return folder


def found(output: Path) -> dict:
    return json.loads((output / "run.json").read_text())["data_report"]["sources"][0]


@pytest.mark.parametrize("cached", ["--cache_latents", "--no-cache_latents"])
def test_reader_reports_and_draws_the_same_captions_after_a_resume(
    new_run: NewRun, script: Script, tmp_path: Path, cached: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "data", [f"toy train/{row}.png" for row in range(6)] + ["._0.png", "unlisted.png"])
    (folder / "notes.pdf").write_text("x")
    rows = [{"file_name": f"toy train/{row}.png", "text": ["a cat", "a dog", f"{row}"]} for row in range(6)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    flags = ("--pretrained_model_name_or_path", script.model, "--train_data_dir", folder, *FLAGS, cached)
    flags += ("--checkpointing_steps", 2, "--learning_rate", 1e-2)
    recipe = RECIPES["finetune_sd"].FinetuneSD()
    seen = {}
    for resumed in (False, True):
        more = ("--resume_from_checkpoint", "checkpoint-4") if resumed else ()
        _, trainer, _ = new_run(recipe, *flags, *more)
        trainer.train()
        seen[resumed] = weights(trainer)
    assert same(seen[False], seen[True])
    line = "found 9, trained on 6, left out 3: 1 not listed in metadata.jsonl, 1 not an image, 1 hidden"
    assert f"{folder}: {line}" in capsys.readouterr().err
    report = found(tmp_path / "out")
    assert (report["found"], report["used"], sum(report["left_out"].values())) == (9, 6, 3)
    assert report["examples"]["hidden"] == ["._0.png"]
    settings = json.loads((tmp_path / "out" / "run.json").read_text())
    assert settings["data"]["train_data_dir"] == str(folder)


def test_reader_accepts_a_saved_data_set_and_counts_what_is_damaged(
    new_run: NewRun, script: Script, tmp_path: Path
) -> None:
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    images = [Image.new("RGB", (40, 40), (row, row, row)) for row in range(5)]
    data = datasets.Dataset.from_dict({"image": images, "text": list("abcde")}, features=features)
    encoded = data.cast_column("image", datasets.Image(decode=False))[:]
    encoded["image"][2]["bytes"] = b"damaged"
    data = datasets.Dataset.from_dict(encoded, features=features)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "saved")
    flags = ("--pretrained_model_name_or_path", script.model, *FLAGS, "--corrupt", "skip")
    _, trainer, _ = new_run(RECIPES["finetune_sd"].FinetuneSD(), *flags, "--train_data_dir", tmp_path / "saved")
    report = found(tmp_path / "out")
    assert (report["used"], report["left_out"]) == (4, {"in the split test": 1, "damaged": 1})
    assert next(trainer.batches())["index"].shape == torch.Size([2])


def test_reader_skips_litter_in_the_subject_s_folder(new_run: NewRun, script: Script, tmp_path: Path) -> None:
    folder = write(tmp_path / "dog", ["0.png", "1.PNG", "2.gif", "._0.png", "more/3.png"])
    for name in ("notes.pdf", ".DS_Store", "Thumbs.db", "0.txt"):
        (folder / name).write_text("x")
    (folder / "empty.png").write_bytes(b"")
    flags = ("--pretrained_model_name_or_path", script.model, "--instance_data_dir", folder, *FLAGS)
    _, trainer, _ = new_run(RECIPES["dreambooth"].FinetuneSubject(), *flags, "--instance_prompt", "sks dog")
    assert len(trainer._rows) == 3
    report = found(tmp_path / "out")
    assert report["left_out"] == {
        "not an image": 2, "hidden": 2, "of the operating system": 1, "empty (0 bytes)": 1, "in a sub-folder": 1,
    }  # fmt: skip


@pytest.mark.usefixtures("fresh_accelerate")
def test_reader_names_what_the_subject_s_folder_holds_instead(script: Script, tmp_path: Path) -> None:
    folder = write(tmp_path / "dog", ["more/3.png"])
    flags = ["--pretrained_model_name_or_path", script.model, "--instance_data_dir", folder, "--instance_prompt", "a"]
    recipe = RECIPES["dreambooth"].FinetuneSubject()
    with pytest.raises(GrowthError, match=r"holds no image file.*for example \['more/3.png'\]"):
        run(recipe, recipe.parse([str(flag) for flag in (*flags, "--output_dir", tmp_path / "out")]))


def test_reader_reports_classes_of_a_dit(new_run: NewRun, tmp_path: Path) -> None:
    names = [f"{kind}/train_{row}.png" for kind in ("lily", "rose") for row in range(3)]
    folder = write(tmp_path / "data", [*names, ".ipynb_checkpoints/0.png"])
    flags = ("--train_data_dir", folder, "--max_train_samples", 4, *FLAGS[:-1], "lily")
    new_run(RECIPES["finetune_dit"].FinetuneDiT(), *flags)
    report = found(tmp_path / "out")
    assert (report["found"], report["used"]) == (7, 4)
    assert report["left_out"] == {"in hidden folders": 1, "beyond --max_train_samples 4": 2}
