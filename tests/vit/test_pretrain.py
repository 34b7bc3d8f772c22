"""The script as a user starts it: what it leaves, what it refuses, and two processes that agree."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from autoprog_diffusion.growth.errors import StateError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.reporting import write_page
from autoprog_diffusion.training.run import main, run
from autoprog_diffusion.vit.training.augment import normalised
from autoprog_diffusion.vit.training.pretraining import Pretraining

from .pretraining import FLAGS, make_npz, tiny_arguments


sys.path.append(str(Path(__file__).resolve().parents[1]))

from fork_server import launch_environments, run_forked  # noqa: E402


PRETRAINING = Pretraining()
SCRIPT = Path(__file__).parents[2] / "vit" / "pretrain.py"


def launch(folder: Path, *flags: str, ranks: int = 1) -> str:
    """What the first of `ranks` processes of the script printed."""
    arguments = [*FLAGS, "--output_dir", "out", *flags]
    run_forked(SCRIPT, arguments, launch_environments(ranks), folder)
    return (folder / "process0.log").read_text()


def test_the_script_leaves_a_model_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    data = str(make_npz(tmp_path))
    out = launch(tmp_path, "--train_data", data, "--search", "one_shot", "--report_to", "tensorboard",
                 "--validation_steps", "6", "--max_train_steps", "30", "--aa", "None", "--mixup", "0")  # fmt: skip
    assert "stage by stage" in out
    model = ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert model.config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    with np.load(data) as file:
        x, y = torch.from_numpy(file["x"][file["test"]]), torch.from_numpy(file["y"][file["test"]])
    with torch.no_grad():
        guess = model(normalised(x.permute(0, 3, 1, 2).float() / 255)).logits.argmax(1)
    report = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert float((guess == y).float().mean()) == pytest.approx(report["validations"][-1]["ema_accuracy"])
    assert GrowthPlan.load(tmp_path / "out" / "growth.json").num_training_steps == 30
    assert [row["steps"] for row in report["stages"]] == [3, 12, 15]
    assert [row["step"] for row in report["validations"]] == [6, 12, 18, 24, 30]
    assert report["saving_against_full"]["flops"] > 1
    assert len(report["decisions"]) == 1
    assert report["command"][0].endswith("pretrain.py")
    picture = np.asarray(Image.open(tmp_path / "out" / "timeline.png").convert("L"))
    assert picture.std() > 10
    assert list((tmp_path / "out" / "logs").rglob("events.out.*"))
    page = write_page([tmp_path / "out"]).read_text(encoding="utf-8")
    (final,) = report["validations"][-1:]
    assert f"of the averaged weights {100 * final['ema_accuracy']:.0f}\u00a0%" in page
    assert page.count(">chosen<") == 1
    assert "Decisions of the search" in page


def test_a_model_of_timm_grows_and_is_left_as_timms_own(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    sizes = "--model_kwargs patch_size 4 embed_dim 16 depth 4 num_heads 2".split()
    name = ("--model", "timm:deit_tiny_patch16_224")
    trainer = run(PRETRAINING, tiny_arguments(tmp_path, *name, *sizes, "--search", "one_shot"))
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = normalised(trainer.data.val.images.float() / 255)  # type: ignore[union-attr]
    with torch.no_grad(), trainer.averaged():
        torch.testing.assert_close(model(images), trainer.bare.eval()(images))
    assert len(model.blocks) == 4


def test_a_zero_shot_search_decides_every_stage_but_the_last(tmp_path: Path) -> None:
    sizes = ("--num_stages", "3", "--resolutions", "8", "12", "16")
    trainer = run(PRETRAINING, tiny_arguments(tmp_path, "--search", "zero_shot", "--seed", "1", *sizes))
    decisions = json.loads((tmp_path / "out" / "growth.json").read_text())["decisions"]
    stages = trainer.growth.plan.stages[:-1]
    chosen = [{"depth": len(stage.blocks), "resolution": stage.resolution} for stage in stages]
    assert [decision["choice"] for decision in decisions] == chosen


def test_an_error_ends_the_script_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: there is no file .*nothing\.npz"):
        main(
            PRETRAINING, [*FLAGS, "--train_data", str(tmp_path / "nothing.npz"), "--output_dir", str(tmp_path / "out")]
        )


WHAT_DOES_NOT = [
    (("--model_kwargs", "num_hidden_layers", "4", "hidden_size", "18", "num_attention_heads", "4"), "heads"),
    (("--img_size", "18", "--resolutions", "8", "18"), "multiple of the patch"),
    (("--resolutions", "6", "16"), "--resolutions 6"),
    (("--batch_size", "500"), "more than the"),
]


def test_what_does_not_fit_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    for flags, message in WHAT_DOES_NOT:
        tmp_path = tmp_path_factory.mktemp("case")
        make_npz(tmp_path)
        data = ("--train_data", str(tmp_path / "tints.npz"), "--output_dir", str(tmp_path / "out"))
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main(PRETRAINING, [*FLAGS, *data, *flags])


def test_resuming_under_another_preset_is_refused(tmp_path: Path) -> None:
    run(PRETRAINING, tiny_arguments(tmp_path, "--checkpointing_steps", "6"))
    sizes = ("--model_kwargs", "num_hidden_layers", "8", "hidden_size", "16", "num_attention_heads", "2")
    other = tiny_arguments(tmp_path, "--resume_from_checkpoint", "latest", "--smoothing", "0.3", *sizes)
    with pytest.raises(StateError, match=r"had other settings: --smoothing was 0.1, now 0.3; --model_kwargs was "):
        run(PRETRAINING, other)
    again = run(PRETRAINING, tiny_arguments(tmp_path, "--resume_from_checkpoint", "latest", "--workers", "0"))
    assert again.step == 12


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_end_with_one_model_and_resume_bit_for_bit(tmp_path: Path) -> None:
    data = str(make_npz(tmp_path))
    flags = ("--train_data", data, "--search", "one_shot", "--checkpointing_steps", "2", "--batch_size", "4")
    flags += ("--checkpoints_total_limit", "9")
    first = launch(tmp_path, *flags, ranks=2)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    report = json.loads((tmp_path / "out" / "growth.json").read_text())
    # In the middle of the search, whose steps are 1 to 3.
    again = launch(tmp_path, *flags, "--resume_from_checkpoint", "checkpoint-2", ranks=2)
    resumed = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert json.loads((tmp_path / "out" / "growth.json").read_text())["plan"] == report["plan"]
    assert re.search(r"validation accuracy .*", first)[0] == re.search(r"validation accuracy .*", again)[0]  # type: ignore[index]
