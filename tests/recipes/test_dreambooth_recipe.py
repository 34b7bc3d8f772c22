"""The DreamBooth recipe in this process: what it leaves, and killed and started again."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.training.run import run

from ..tasks.training import same, weights
from .conftest import NewRun, Script, load_recipe


RECIPE = load_recipe("dreambooth").FinetuneSubject()
FLAGS = (
    "--instance_prompt", "sks cat", "--max_train_steps", 8, "--train_batch_size", 2,
    "--gradient_accumulation_steps", 2,
    "--average", "on", "--average_widths", 0.28,
    "--learning_rate", 1e-3, "--stage_embedding_init", "normal", "--random_flip",
    "--checkpointing_steps", 3, "--resolutions", 0.5, 0.5, 1, 1,
)  # fmt: skip
PRIOR = ("--with_prior_preservation", "--class_prompt", "cat", "--num_class_images", 5)


@pytest.fixture(scope="session")
def subject_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    for index, colour in enumerate(("red", "orange", "brown")):
        Image.new("RGB", (40, 32 + index), colour).save(folder / f"{index}.png")
    return folder


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_leaves_a_plain_pipeline_and_the_class_s_pictures(
    script: Script, subject_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ["--pretrained_model_name_or_path", script.model, "--output_dir", output, "--search", "none"]
    flags += ["--instance_data_dir", subject_dir, "--num_inference_steps", 2, *FLAGS, *PRIOR]
    run(RECIPE, RECIPE.parse([str(flag) for flag in flags]))
    for name in ("before_after.png", "timeline.png", "growth.json"):
        assert (output / name).stat().st_size > 100, name
    assert len(list((output / "class_images").iterdir())) == 5
    assert len(list((output / "before").iterdir())) == 6  # four of the subject, two of the class
    plain, start = (
        StableDiffusionPipeline.from_pretrained(folder, safety_checker=None) for folder in (output, script.model)
    )
    assert not same(dict(plain.unet.state_dict()), dict(start.unet.state_dict()))
    with pytest.raises(GrowthError, match="already holds a run"):
        run(RECIPE, RECIPE.parse([str(flag) for flag in flags]))


@pytest.mark.parametrize(
    "cached", [(), pytest.param(("--no-cache_latents",), marks=pytest.mark.slow)], ids=["cached", "disk"]
)
@pytest.mark.parametrize("prior", [pytest.param((), marks=pytest.mark.slow), PRIOR], ids=["subject", "prior"])
def test_a_resumed_run_ends_bit_identical(
    new_run: NewRun, script: Script, subject_dir: Path, prior: tuple, cached: tuple
) -> None:
    flags = ("--pretrained_model_name_or_path", script.model, "--instance_data_dir", subject_dir, *FLAGS)
    _, whole, _ = new_run(RECIPE, *flags, *prior, *cached)
    whole.train()
    whole.finish()
    _, resumed, _ = new_run(RECIPE, *flags, *prior, *cached, "--resume_from_checkpoint", "checkpoint-3")
    resumed.train()
    resumed.finish()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


def test_the_prior_changes_what_is_learned(new_run: NewRun, script: Script, subject_dir: Path) -> None:
    ends = []
    for weight in (0, 1):
        flags = ("--pretrained_model_name_or_path", script.model, "--instance_data_dir", subject_dir, *FLAGS, *PRIOR)
        _, trainer, _ = new_run(RECIPE, *flags, "--prior_loss_weight", weight)
        trainer.train()
        ends.append(weights(trainer))
    assert not same(*ends)


BAD = {
    "no prompt": (("--instance_prompt", ""), "--instance_prompt is missing"),
    "no folder": (("--instance_data_dir", "{tmp}/none"), "--instance_data_dir .*none does not exist"),
    "no image": (("--instance_data_dir", "{tmp}"), "holds no image file"),
    "corrupt": (("--instance_data_dir", "{tmp}/corrupt"), r"image 0 of the training set cannot be decoded.*0\.png"),
    "batch": (("--train_batch_size", 4), "the training set has 3 images, fewer than one batch of 4"),
    "data": (("--train_data_dir", "{tmp}"), "give --instance_data_dir"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(
    new_run: NewRun, script: Script, subject_dir: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "corrupt").mkdir()
    for number in range(2):
        (tmp_path / "corrupt" / f"{number}.png").write_bytes(b"nothing")
    flags, message = BAD[name]
    model = ("--pretrained_model_name_or_path", script.model, "--instance_data_dir", subject_dir)
    with pytest.raises(GrowthError, match=message):
        new_run(RECIPE, *model, *FLAGS, *(str(flag).replace("{tmp}", str(tmp_path)) for flag in flags))[1].train()


def test_the_default_is_a_blue_cat(tmp_path: Path) -> None:
    args = RECIPE.parse(["--output_dir", str(tmp_path)])
    assert args.subject.with_prior_preservation
    titles = RECIPE.titles(args, None)
    assert titles[0] == "zwx cat face"
    assert "cat face" in titles
