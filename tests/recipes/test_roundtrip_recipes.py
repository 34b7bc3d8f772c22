"""Every recipe leaves what it trained: plain Diffusers loads the folder and computes the same, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from autoprog_diffusion.growth import GrowthError

from ..tasks.denoisers import output
from ..tasks.tiny_transformers import build_dit, build_flux, build_sd3, save, write_classes
from .conftest import NewRun, Script, load_recipe


SHORT = (
    "--max_train_steps", 4, "--train_batch_size", 2, "--learning_rate", 1e-2, "--validation_prompts", "a",
    "--lr_warmup_steps", 0,
)  # fmt: skip
# The fifth step lies in the second sweep, with moments of the first one parked.
WINDOWS = (
    "--direction", "window", "--num_stages", 4, "--sweeps", 2, "--window_state", "park", "--max_train_steps", 8,
    "--checkpointing_steps", 5, "--use_ema", "--ema_decay", 0.5, "--rewarm_steps", 2,
)  # fmt: skip
SMALL = {
    "exact": ("--frozen_dtype", "bfloat16", "--optimizer", "adamw8bit"),
    "quantised": ("--frozen_dtype", "int8"),
}
RECIPES: dict[str, Any] = {
    "sd": load_recipe("finetune_sd").FinetuneSD(),
    "sdxl": load_recipe("finetune_sdxl").FinetuneSDXL(),
    "sd3": load_recipe("finetune_flow").FinetuneFlow(),
    "flux": load_recipe("finetune_flow").FinetuneFlow(),
    "dit": load_recipe("finetune_dit").FinetuneDiT(),
    "dreambooth": load_recipe("dreambooth").FinetuneSubject(),
    "lora": load_recipe("finetune_lora").FinetuneLora(),
}
# Parts that a pipeline works without, and that Diffusers wants to be told of.
LEFT_OUT: dict[str, dict[str, None]] = {"sd3": {"text_encoder_3": None, "tokenizer_3": None}}


@pytest.fixture(scope="module")
def models(script: Script, sdxl_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "sd": script.model,
        "dreambooth": script.model,
        "lora": script.model,
        "sdxl": sdxl_dir,
        "sd3": save(root / "sd3", build_sd3),
        "flux": save(root / "flux", build_flux),
        "dit": save(root / "dit", build_dit, id2label={0: "rose", 1: "tench, Tinca tinca", 2: "fish"}),
    }


def flags_of(kind: str, model: Path, script: Script, folder: Path) -> tuple[object, ...]:
    """A short run's flags."""
    flags: tuple[object, ...] = ("--pretrained_model_name_or_path", model, *SHORT)
    if kind == "dit":
        return (*flags[:-4], "--lr_warmup_steps", 0, "--train_data_dir", write_classes(folder / "classes"))
    if kind == "dreambooth":
        return (*flags, "--instance_data_dir", script.images, "--instance_prompt", "a b")
    length = ("--max_sequence_length", 8, "--resolution", 32) if kind in ("sd3", "flux") else ()
    return (*flags, *length, "--train_data_dir", script.images)


def loaded(kind: str, folder: Path) -> Any:
    """The pipeline as plain Diffusers loads it: the class is in the folder."""
    index = json.loads((folder / "model_index.json").read_text())
    return getattr(diffusers, index["_class_name"]).from_pretrained(folder, **LEFT_OUT.get(kind, {}))


def denoise(kind: str, model: Any) -> Tensor:
    if kind != "dit":
        return output({"dreambooth": "sd", "lora": "sd"}.get(kind, kind), model)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    times = torch.tensor([3, 900])
    with torch.no_grad():
        return model.eval()(latents, timestep=times, class_labels=torch.tensor([1, 2])).sample


# Of DreamBooth, which saves as the first one does, test_dreambooth_recipe.py looks at a run of its own.
LEFT = [pytest.param(k, False, marks=pytest.mark.slow if k == "dreambooth" else ()) for k in RECIPES]


@pytest.mark.parametrize(("kind", "ema"), [*LEFT, ("sd", True), ("lora", True)])
def test_a_run_leaves_what_it_trained(
    new_run: NewRun, models: dict[str, Path], script: Script, tmp_path: Path, kind: str, ema: bool
) -> None:
    recipe = RECIPES[kind]
    flags = flags_of(kind, models[kind], script, tmp_path)
    averaged = ("--use_ema", "--ema_decay", 0.5) if ema else ()
    pipeline, trainer, _ = new_run(recipe, *flags, *averaged)
    before = loaded(kind, models[kind])
    trainer.train()
    with_embedding = denoise(kind, trainer.bare)
    trainer.finish()
    trained = denoise(kind, trainer.bare)
    if not ema:  # folding the last stage's row changes the sum's order alone
        torch.testing.assert_close(trained, with_embedding, rtol=1e-4, atol=1e-4)
    folder = tmp_path / "out"
    recipe.save_pipeline(pipeline, folder)
    if kind == "lora":
        before.load_lora_weights(folder)
        assert torch.equal(denoise(kind, before.unet), trained)
        return
    after = loaded(kind, folder)
    assert torch.equal(denoise(kind, getattr(after, "transformer", None) or after.unet), trained)
    assert not torch.equal(trained, denoise(kind, getattr(before, "transformer", None) or before.unet))
    compare_the_rest(pipeline, before, after)


@pytest.mark.parametrize(
    ("kind", "small"),
    [
        # What is saved is tested for every recipe above; windows meet every family in the contracts.
        *(pytest.param(kind, None, marks=pytest.mark.slow) for kind in RECIPES),
        ("sd", "exact"),
        pytest.param("lora", "exact", marks=pytest.mark.slow),
        pytest.param("sd", "quantised", marks=pytest.mark.slow),
        ("flux", "quantised"),
    ],
)
def test_windows_train_and_resume_bit_for_bit(
    new_run: NewRun, models: dict[str, Path], script: Script, tmp_path: Path, kind: str, small: str | None
) -> None:
    flags = (*flags_of(kind, models[kind], script, tmp_path), *WINDOWS, *SMALL.get(small or "", ()))
    _, whole, _ = new_run(RECIPES[kind], *flags)
    whole.train()
    counts = [len(stage.blocks) for stage in whole.growth.plan.stages]
    assert counts[:2] == counts[2:]
    assert sum(counts[:2]) == whole.growth.plan.num_blocks
    whole.finish()
    _, resumed, _ = new_run(RECIPES[kind], *flags, "--resume_from_checkpoint", "checkpoint-5")
    resumed.train()
    resumed.finish()
    wanted = whole.bare.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.bare.state_dict().items())


def compare_the_rest(pipeline: Any, before: Any, after: Any) -> None:
    """Every part that does not train is what it was, and the classes are those of the run."""
    assert set(before.components) == set(after.components)
    for name, part in before.components.items():
        other = after.components[name]
        assert type(part) is type(other)
        if name in ("unet", "transformer"):
            continue
        if isinstance(part, torch.nn.Module):
            state = other.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())
        elif hasattr(part, "config"):
            assert dict(part.config) == dict(other.config)
        elif part is not None:
            assert part.get_vocab() == other.get_vocab()
            assert part.model_max_length == other.model_max_length
    if hasattr(pipeline, "labels"):
        assert after.labels == dict(sorted(pipeline.labels.items()))


@pytest.mark.parametrize("kind", ["sd", "dit"])
def test_the_prediction_type_is_saved_as_trained(
    new_run: NewRun, models: dict[str, Path], script: Script, tmp_path: Path, kind: str
) -> None:
    recipe = RECIPES[kind]
    flags = flags_of(kind, models[kind], script, tmp_path)
    own = loaded(kind, models[kind]).scheduler.config.prediction_type
    other = {"v_prediction": "epsilon", "epsilon": "v_prediction"}[own]
    pipeline, trainer, _ = new_run(recipe, *flags, "--prediction_type", other)
    # The pictures of before are drawn as the pipeline was.
    assert pipeline.scheduler.config.prediction_type == own
    trainer.train()
    trainer.finish()
    recipe.save_pipeline(pipeline, tmp_path / "out")
    assert loaded(kind, tmp_path / "out").scheduler.config.prediction_type == other


@pytest.mark.parametrize("kind", ["sd", "sdxl", "lora", "dreambooth"])
@pytest.mark.parametrize("size", [60, 68])
def test_a_size_that_the_pipeline_does_not_draw_is_refused(
    new_run: NewRun, models: dict[str, Path], script: Script, tmp_path: Path, kind: str, size: int
) -> None:
    flags = flags_of(kind, models[kind], script, tmp_path)
    with pytest.raises(GrowthError, match=rf"--resolution {size} is not a multiple of 8 .*: use 64"):
        new_run(RECIPES[kind], *flags, "--resolution", size)


def test_the_default_model_draws_multiples_of_8(new_run: NewRun) -> None:
    for size in (60, 68):
        with pytest.raises(GrowthError, match=rf"--resolution {size} is not a multiple of 8"):
            new_run(RECIPES["sd"], "--resolution", size)


def test_positions_end_somewhere(new_run: NewRun, models: dict[str, Path], script: Script, tmp_path: Path) -> None:
    flags = flags_of("sd3", models["sd3"], script, tmp_path)
    with pytest.raises(GrowthError, match="--resolution 128 is not allowed: .* ends at 64 pixels"):
        new_run(RECIPES["sd3"], *flags, "--resolution", 128)


def test_a_lora_of_another_prediction_type_is_refused(
    new_run: NewRun, models: dict[str, Path], script: Script, tmp_path: Path
) -> None:
    flags = flags_of("lora", models["lora"], script, tmp_path)
    with pytest.raises(GrowthError, match="--prediction_type epsilon is not allowed for a LoRA"):
        new_run(RECIPES["lora"], *flags, "--prediction_type", "epsilon")
