"""The class-conditional recipe: whole runs in this process, and the script once as users start it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from PIL import Image
from safetensors.torch import load_file

from autoprog_diffusion.growth import GrowthError, GrowthPlan
from autoprog_diffusion.tasks.arguments import ClassConditionalArguments
from autoprog_diffusion.training.run import run

from ..tasks.conftest import forget
from ..tasks.tiny_transformers import CLASSES, IMAGENET, build_dit, save, write_classes
from .conftest import Script, load_recipe


FinetuneDiT = load_recipe("finetune_dit").FinetuneDiT
WEIGHTS = Path("transformer", "diffusion_pytorch_model.safetensors")
# 24 images are 3 steps of 2 batches of 4: the run crosses two epochs. Everything that has a state is on.
FLAGS = (
    "--max_train_steps", 8, "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--random_flip",
    "--use_ema", "--ema_decay", 0.7, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--learning_rate", 1e-3,
    "--checkpointing_steps", 3, "--resolutions", 0.5, 0.5, 1, 1, "--stage_embedding_init", "normal",
    "--class_dropout", 0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Script:
    settings = {"classes": 3, "learned_variance": True, "id2label": IMAGENET}
    model = save(tmp_path_factory.mktemp("dit"), build_dit, **settings)
    return Script("finetune_dit", model, write_classes(tmp_path_factory.mktemp("classes")), environment)


def train(dit: Script, output: Path, *flags: object) -> Path:
    forget()
    cache = ("--cache_dir", output.parent / "datasets")
    recipe = FinetuneDiT()
    run(recipe, recipe.parse([*dit.flags(output), *(str(flag) for flag in (*cache, *flags))]))
    forget()
    return output


@pytest.fixture(scope="module")
def whole(dit: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(dit, tmp_path_factory.mktemp("whole") / "out", *FLAGS)


def weights(output: Path) -> bytes:
    return (output / WEIGHTS).read_bytes()


def test_a_run_leaves_a_plain_pipeline_of_the_data_s_classes(dit: Script, whole: Path) -> None:
    pipeline = DiTPipeline.from_pretrained(whole)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.labels == {"lily": 0, "rose": 1, "tulip": 2}
    assert pipeline.transformer.config.num_embeds_ada_norm == 1000
    ids = pipeline.get_label_ids(["tulip", "lily"])
    images = pipeline(ids, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(32, 32)] * 2
    start, end = (
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors") for folder in (dit.model, whole)
    )
    assert list(start) == list(end)
    moved = [name for name in start if start[name].shape != end[name].shape or not torch.equal(start[name], end[name])]
    assert len(moved) == len(start)
    assert end["transformer_blocks.3.norm1.emb.class_embedder.embedding_table.weight"].shape == (1001, 32)


def test_a_run_leaves_its_report(whole: Path) -> None:
    plan = GrowthPlan.load(whole / "growth.json")
    assert [stage.resolution for stage in plan.stages] == [0.5, 0.5, 1.0, 1.0]
    assert [len(stage.blocks) for stage in plan.stages] == [4, 3, 2, 1]
    picture = np.asarray(Image.open(whole / "before_after.png").convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    assert len(list((whole / "before").iterdir())) == len(CLASSES)
    assert json.loads((whole / "run.json").read_text())["classes"]["class_dropout"] == 0.3


def test_a_resumed_run_ends_with_the_same_bits(dit: Script, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in ("checkpoints/checkpoint-3", "before"):
        shutil.copytree(whole / name, output / name)
    train(dit, output, *FLAGS, "--resume_from_checkpoint", "latest")
    assert weights(output) == weights(whole)
    ours, theirs = (json.loads((folder / "growth.json").read_text())["stages"] for folder in (output, whole))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


def test_the_search_and_images_from_disk_work_with_classes(dit: Script, tmp_path: Path) -> None:
    flags = ("--max_train_steps", 10, "--train_batch_size", 8, "--num_stages", 2, "--no-cache_latents")
    output = train(dit, tmp_path / "out", *flags, "--search", "zero_shot", "--validation_prompts", "rose")
    report = json.loads((output / "growth.json").read_text())
    assert report["decisions"]
    assert weights(output) != weights(dit.model)


def test_kept_classes_are_trained_at_their_own_rows(dit: Script, tmp_path: Path) -> None:
    images = write_classes(tmp_path / "fish", ("Carassius_auratus", "rose"))
    flags = ("--max_train_steps", 4, "--train_batch_size", 8, "--keep_classes", "--adam_weight_decay", 0)
    output = train(dit, tmp_path / "out", *flags, "--class_dropout", 0, "--train_data_dir", images)
    name = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    start, end = (load_file(folder / WEIGHTS)[name] for folder in (dit.model, output))
    assert [torch.equal(start[row], end[row]) for row in range(3)] == [True, False, False]
    assert DiTPipeline.from_pretrained(output).labels["tench"] == 0


BAD = {
    "batch": (("--train_batch_size", 25), "24 images, fewer than one batch of 25"),
    "classes": (("--keep_classes",), r"the checkpoint has no class \['lily', 'tulip'\]"),
    "titles": (("--validation_prompts", "orchid"), r"\['orchid'\] are no classes of the data, which are \['lily'"),
    "column": (("--label_column", "kind"), "--label_column 'kind' is not a column"),
    "resolution": (("--resolution", 64), "draws images of 32 pixels only"),
    "multiple": (("--resolution", 36), "not a multiple of 8"),
    "stages": (("--resolutions", 0.4, 1, 1, 1), "must be a multiple of 8"),
    "model": (("--pretrained_model_name_or_path", "{tmp}"), "holds no Diffusers pipeline"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(dit: Script, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    flags, message = BAD[name]
    with pytest.raises(GrowthError, match=message):
        train(dit, tmp_path / "out", *(str(flag).replace("{tmp}", str(tmp_path)) for flag in flags))
    forget()


def test_the_default_model_brings_its_flags() -> None:
    args = FinetuneDiT().parse([])
    assert isinstance(args, ClassConditionalArguments)
    assert (args.train.max_train_steps, args.train.lr_warmup_steps, args.growth.order) == (1200, 50, "suffix")
    assert FinetuneDiT().parse(["--pretrained_model_name_or_path", "x"]) == ClassConditionalArguments(
        model=type(args.model)(pretrained_model_name_or_path="x"), given=("pretrained_model_name_or_path",)
    )


@pytest.mark.slow
def test_the_default_run_draws_new_classes(tmp_path: Path, environment: dict[str, str]) -> None:
    script = Script("finetune_dit", Path(), Path(), environment)
    done = script.run_bare(("--output_dir", tmp_path / "out", "--max_train_steps", 8, "--num_inference_steps", 2))
    assert "progressive training, stage by stage" in done.stdout
    labels = DiTPipeline.from_pretrained(tmp_path / "out").labels
    assert len(labels) == 10
    assert "bird" in labels


def test_bad_input_ends_the_script_with_one_line(dit: Script, tmp_path: Path) -> None:
    done = dit.run(tmp_path / "out", "--class_dropout", 2, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: --class_dropout 2.0 is not allowed")
    assert "Traceback" not in done.stderr
