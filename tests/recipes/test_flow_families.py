"""Every family through the recipes: what a run leaves samples in plain Diffusers, and a resume ends with its bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from autoprog_diffusion.tasks.flow_matching import flow_family
from autoprog_diffusion.tasks.flow_pictures import draw_flow

from ..tasks.test_wan_videos import write_videos
from ..tasks.tiny_families import BUILD_ALL
from ..tasks.tiny_transformers import save
from .conftest import NewRun, Script, load_recipe


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
RECIPES = {"full": load_recipe("finetune_flow").FinetuneFlow, "lora": load_recipe("finetune_lora").FinetuneLora}
FLAGS = (
    "--max_train_steps", 4, "--train_batch_size", 2, "--learning_rate", 1e-2, "--validation_prompts", "a",
    "--lr_warmup_steps", 0, "--resolution", 32, "--max_sequence_length", 24, "--checkpointing_steps", 2,
    "--num_stages", 2, "--use_ema", "--ema_decay", 0.5, "--proportion_empty_prompts", 0.3, "--rank", 2,
)  # fmt: skip
# Every family is trained; those whose rows differ most are trained by default.
QUICK = ("qwen_image", "z_image")
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in BUILD_ALL]
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {kind: save(root / kind, build) for kind, build in BUILD_ALL.items()}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def flags_of(method: str, model: Path, images: Path) -> tuple[object, ...]:
    flags = FLAGS if method == "lora" else FLAGS[:-2]
    return ("--pretrained_model_name_or_path", model, "--train_data_dir", images, *flags)


def loaded(kind: str, folder: Path) -> Any:
    """The pipeline by plain Diffusers, from the class that the folder names."""
    options = {"transformer_2": None} if kind == "wan" else {}
    return diffusers.DiffusionPipeline.from_pretrained(folder, **options)


def picture(pipeline: Any) -> torch.Tensor:
    (image,) = draw_flow(pipeline, ["a b"], size=32, steps=2, guidance=2.0, seed=0, max_sequence_length=24)
    return torch.tensor(list(image.tobytes()))


@kinds
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_a_run_leaves_samples_and_a_resume_ends_with_its_bits(
    new_run: NewRun, models: dict[str, Path], script: Script, tmp_path: Path, kind: str, method: str
) -> None:
    if (kind, method) == ("pixart", "lora"):
        pytest.skip("Diffusers has no LoRA of PixArt")
    flags = flags_of(method, models[kind], script.images)
    recipe = RECIPES[method]()
    pipeline, trainer, pictures = new_run(recipe, *flags)
    pictures.save_before()
    trainer.train()
    trainer.finish()
    output = tmp_path / "out"
    recipe.save_pipeline(pipeline, output)
    plain = loaded(kind, models[kind] if method == "lora" else output)
    untrained = picture(plain) if method == "lora" else picture(loaded(kind, models[kind]))
    if method == "lora":
        plain.load_lora_weights(output)
    trained = picture(plain)
    assert torch.equal(trained, picture(pipeline))
    assert not torch.equal(trained, untrained)
    if (kind, method) == ("flux2", "lora"):  # both kinds of blocks are adapted
        adapted = [name for name, _ in trainer.bare.named_parameters() if "lora_B" in name]
        assert {name.split(".")[0] for name in adapted} == {"transformer_blocks", "single_transformer_blocks"}
        assert sum("single" in name for name in adapted) == 4
    if method == "full":
        state = plain.transformer.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in trainer.bare.state_dict().items())
    _, resumed, _ = new_run(recipe, *flags, "--resume_from_checkpoint", "checkpoint-2")
    assert resumed.step == 2
    resumed.train()
    resumed.finish()
    wanted = trainer.bare.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.bare.state_dict().items())
    assert flow_family(plain).pipeline_class == type(plain).__name__


@pytest.mark.slow
def test_a_run_on_short_videos_leaves_what_it_trained(
    new_run: NewRun, models: dict[str, Path], tmp_path: Path
) -> None:
    videos = write_videos(tmp_path / "videos")
    recipe = RECIPES["full"]()
    flags = (*flags_of("full", models["wan"], videos), "--num_frames", 5, "--no-held_out")
    pipeline, trainer, pictures = new_run(recipe, *flags)
    pictures.save_before()
    trainer.train()
    trainer.finish()
    recipe.save_pipeline(pipeline, tmp_path / "out")
    state = loaded("wan", tmp_path / "out").transformer.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in trainer.bare.state_dict().items())
    _, resumed, _ = new_run(recipe, *flags, "--resume_from_checkpoint", "checkpoint-2")
    resumed.train()
    resumed.finish()
    assert all(torch.equal(value, state[name]) for name, value in resumed.bare.state_dict().items())
