"""A resumed run with other flags: rates are applied, a longer run goes on, and nothing else passes unnoticed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprog_diffusion.growth import StateError
from autoprog_diffusion.training.manifest import sealed
from autoprog_diffusion.training.run import ready, run
from autoprog_diffusion.vit.training.pretraining import Pretraining

from ..tasks.conftest import forget
from ..vit.pretraining import FLAGS as VIT_FLAGS
from ..vit.pretraining import make_npz
from .conftest import Script, load_recipe


SD = load_recipe("finetune_sd").FinetuneSD()
LORA = load_recipe("finetune_lora").FinetuneLora()
Start = Callable[..., Any]


@pytest.fixture(scope="module")
def begun(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps, with checkpoints after two and four."""
    folder = tmp_path_factory.mktemp("begun")
    forget()
    run(SD, SD.parse(flags(script, folder, "--max_train_steps", 4)))
    forget()
    return folder / "out"


def flags(script: Script, folder: Path, *more: object) -> list[str]:
    own = (
        "--cache_dir",
        script.model.parent / "hub",
        "--train_batch_size",
        4,
        "--validation_prompts",
        "a",
        "--checkpointing_steps",
        2,
    )
    own += ("--learning_rate", 5e-4, "--lr_scheduler", "cosine", "--lr_warmup_steps", 0, "--num_stages", 2)
    return [*script.flags(folder / "out"), *map(str, (*own, *more))]


def forget_settings(folder: Path, values: object = None) -> None:
    """Delete, or replace, the settings that a run noted, as where only a checkpoint was kept by an older version."""
    for file in folder.rglob("run.json"):
        file.unlink() if values is None else file.write_text(json.dumps(values))
    for marker in folder.rglob("complete.json"):
        known = json.loads(marker.read_text())
        paths = [path for path in marker.parent.rglob("*") if path.is_file() and path != marker]
        files = {str(path.relative_to(marker.parent)): path.stat().st_size for path in paths}
        entries = {"step": known["step"], "written": known["written"], "files": files}
        marker.write_text(json.dumps(sealed(entries, marker.parent)))


@pytest.fixture
def resume(script: Script, begun: Path, tmp_path: Path) -> Start:
    """The trainer of a run that goes on in a copy of the folder."""
    shutil.copytree(begun, tmp_path / "out")

    def start(*more: object, wanted: str = "checkpoint-2", recipe: Any = SD) -> Any:
        forget()
        words = flags(script, tmp_path, "--max_train_steps", 4, *more, "--resume_from_checkpoint", wanted)
        return ready(recipe, recipe.parse(words))

    yield start
    forget()


def test_resume_applies_the_new_rate_and_decay(resume: Start, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = resume("--learning_rate", 1e-4, "--adam_weight_decay", 0.5)
    assert "resumed with --learning_rate 0.0001 (was 0.0005), --adam_weight_decay 0.5 (was 0.01)\n" in (
        capsys.readouterr().out
    )
    (group,) = trainer.optimizer.param_groups
    cosine = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(5)]
    assert (group["lr"], group["weight_decay"]) == (pytest.approx(1e-4 * cosine[2]), 0.5)
    rates = []
    trainer.train(lambda step: rates.append(group["lr"]))
    assert rates == pytest.approx([1e-4 * cosine[3], 1e-4 * cosine[4]])
    starts = json.loads((trainer.root.parent / "run.json").read_text())["starts"]
    assert [start["settings"]["train"]["learning_rate"] for start in starts] == [5e-4, 1e-4]


def test_resume_with_equal_flags_says_and_changes_nothing(
    resume: Start, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = resume()
    assert "resumed with" not in capsys.readouterr().out
    trainer.train()
    trainer.checkpoint()
    new, old = (
        torch.load(folder / "checkpoints/checkpoint-4/optimizer.bin", weights_only=True)
        for folder in (trainer.root.parent, begun)
    )
    assert new["param_groups"] == old["param_groups"]
    for key, state in old["state"].items():
        assert torch.equal(new["state"][key]["exp_avg"], state["exp_avg"])


@pytest.mark.parametrize(
    ("more", "steps"), [(("--max_train_steps", 8), 8), (("--num_train_epochs", 2), 12)], ids=["steps", "epochs"]
)
def test_resume_goes_on_with_a_longer_run(
    script: Script, resume: Start, tmp_path: Path, more: tuple[object, ...], steps: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    forget()
    own = flags(script, tmp_path, *more, "--resume_from_checkpoint", "checkpoint-2")
    trainer = ready(SD, SD.parse(own))
    assert trainer.max_steps == steps
    printed = capsys.readouterr().out
    assert f"resumed with {more[0]} {more[1]} (was " in printed
    assert ("no --max_train_steps (was 4)" in printed) == (more[0] == "--num_train_epochs")
    plan = trainer.growth.plan
    assert plan.num_training_steps == steps
    assert [stage.start for stage in plan.stages] == [0, 2]  # the second stage has begun
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] == pytest.approx(5e-4 * 0.5 * (1 + math.cos(math.pi * 2 / steps)))
    trainer.train()
    assert trainer.step == steps
    assert group["lr"] == pytest.approx(0, abs=1e-12)


def test_resume_extends_a_finished_run_again_and_again(resume: Start) -> None:
    for steps in (6, 7):
        trainer = resume("--max_train_steps", steps, wanted="latest")
        assert trainer.step == {6: 4, 7: 6}[steps]
        trainer.train()
        trainer.checkpoint()
    starts = json.loads((trainer.root.parent / "run.json").read_text())["starts"]
    assert [(start["step"], start["steps"]) for start in starts] == [(0, 4), (4, 6), (6, 7)]


def test_resume_refuses_an_end_that_is_past(resume: Start) -> None:
    with pytest.raises(StateError, match=r"checkpoint-4 is at step 4, and the run would end at step 3"):
        resume("--max_train_steps", 3, wanted="latest")


def test_resume_notices_other_data(script: Script, resume: Start, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(script.images, images)
    lines = (images / "metadata.jsonl").read_text().splitlines()
    values = json.loads((tmp_path / "out" / "run.json").read_text())
    values["starts"][0]["settings"]["data"]["train_data_dir"] = str(images)
    forget_settings(tmp_path / "out", values)
    assert resume("--train_data_dir", images).step == 2
    (images / "metadata.jsonl").write_text("\n".join([lines[0].replace("picture", "drawing"), *lines[1:]]))
    with pytest.raises(StateError, match="24 images as before, but other names, captions or classes"):
        resume("--train_data_dir", images)
    (images / "23.png").unlink()
    (images / "metadata.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(StateError, match="training data changed since the run began: it had 24 images, now 23"):
        resume("--train_data_dir", images)


RESUME_WITHOUT_KNOWN = [
    ("--use_ema",),
    ("--growth", "off"),
    ("--mixed_precision", "bf16", "--use_ema"),
    ("--num_stages", 3),
]


def test_resume_without_known_settings_still_ends_in_one_line(
    resume: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for more in RESUME_WITHOUT_KNOWN:
        tmp_path = tmp_path_factory.mktemp("case")
        forget_settings(tmp_path / "out")
        with pytest.raises(StateError) as caught:
            resume(*more)
        assert "is not a complete checkpoint" not in str(caught.value)
        assert len(str(caught.value)) < 900


def test_resume_of_another_rank_or_number_of_processes_is_one_line(
    script: Script, tmp_path: Path, begun: Path
) -> None:
    def start(*more: object) -> Any:
        forget()
        return ready(LORA, LORA.parse(flags(script, tmp_path, "--max_train_steps", 4, *more)))

    trainer = start("--rank", 4)
    trainer.train()
    forget_settings(tmp_path / "out")
    with pytest.raises(StateError, match="checkpoint-2"):
        start("--rank", 2, "--resume_from_checkpoint", "checkpoint-2")
    state = tmp_path / "out" / "checkpoints" / "checkpoint-2" / "random_states_0.pkl"
    shutil.copy(state, state.with_name("random_states_1.pkl"))
    forget_settings(tmp_path / "out")
    with pytest.raises(StateError, match="was written by 2 processes, this run has 1"):
        start("--rank", 4, "--resume_from_checkpoint", "checkpoint-2")
    forget()


def test_resume_of_pretraining_applies_the_rate_and_goes_on(tmp_path: Path) -> None:
    data = make_npz(tmp_path)

    def start(*more: str) -> Any:
        forget()
        words = [*VIT_FLAGS, "--train_data", str(data), "--output_dir", str(tmp_path / "out"), *more]
        script = Pretraining()
        return ready(script, script.parse(words))

    start("--checkpointing_steps", "4", "--checkpoints_total_limit", "9").train()
    trainer = start("--resume_from_checkpoint", "checkpoint-4", "--lr", "1e-3", "--weight_decay", "0.5", "--sched",
                    "constant", "--max_train_steps", "20")  # fmt: skip
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([1e-3, 1e-3])
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.5, 0.0]
    trainer.train()
    assert trainer.step == 20
    assert trainer.growth.plan.num_training_steps == 20
    with pytest.raises(StateError, match="--batch_size was 8, now 9"):
        start("--resume_from_checkpoint", "latest", "--batch_size", "9")
    forget()
