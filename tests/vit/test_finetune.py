"""Fine-tuning a pretrained ViT by unfreezing: what trains, what a run leaves, and that a resumed run is the same."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.growth import ConfigError, GrowthPlan, StateError
from autoprog_diffusion.training.run import main, run
from autoprog_diffusion.vit.models import ModelError, build_model, load_model, logits, save_model
from autoprog_diffusion.vit.pretrained import fit_head, load_pretrained, trained_classes
from autoprog_diffusion.vit.training.finetuning import Finetuning
from autoprog_diffusion.vit.training.trainer import ViTTrainer as Trainer

from .pretraining import averages, make_npz, same, start, weights


sys.path.append(str(Path(__file__).resolve().parents[1]))

from fork_server import rank_environments, run_forked  # noqa: E402


FINETUNING = Finetuning()
SCRIPT = Path(__file__).resolve().parents[2] / "vit" / "finetune.py"
FLAGS = (
    "--batch_size 8 --max_train_steps 12 --warmup_steps 2 --lr 3e-3 --crop pad --aa None --model_ema_decay 0.5 "
    "--search zero_shot --num_stages 3 --search_batches 2 --checkpointing_steps 1 --checkpoints_total_limit 20"
).split()
NewRun = Callable[..., Trainer]


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """A pretrained model of 6 blocks, data of other classes, and an output folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "patch_size": 4}
    model = build_model("transformers:vit", num_classes=4, image_size=16, **sizes)
    save_model(model, tmp_path / "pretrained", labels=["a", "b", "c", "d"])
    files = ["--model", tmp_path / "pretrained", "--train_data", make_npz(tmp_path), "--output_dir", tmp_path / "out"]
    return [*FLAGS, *map(str, files)]


@pytest.fixture
def fresh() -> Iterator[Callable[[], None]]:
    """Drop Accelerate's process-wide state, now and at the end."""
    from accelerate.state import AcceleratorState

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)

    yield forget
    forget()


@pytest.fixture
def new_trainer(flags: list[str], fresh: Callable[[], None], tmp_path: Path) -> NewRun:
    def make(*more: str) -> Trainer:
        fresh()
        (tmp_path / "out").mkdir(exist_ok=True)
        return start(FINETUNING, FINETUNING.parse([*flags, *more]))

    return make


def test_a_run_leaves_a_plain_model_and_a_report(
    flags: list[str], fresh: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh()
    trainer = run(FINETUNING, FINETUNING.parse(flags))
    model = load_model(tmp_path / "out")
    assert trained_classes(model) == ["class 0", "class 1", "class 2"]
    images = torch.randn(2, 3, 16, 16)
    with trainer.averaged(), torch.no_grad():
        assert torch.equal(logits(model.eval(), images), logits(trainer.bare.eval(), images))
    assert all(parameter.requires_grad for parameter in trainer.bare.parameters())
    plan = GrowthPlan.load(tmp_path / "out" / "growth.json")
    # The head alone while the first search records, two stages that were chosen, the whole model.
    assert [stage.start for stage in plan.stages] == [0, 2, 4, 8]
    assert plan.stages[0].blocks == ()
    assert plan.stages[-1].blocks == tuple(range(6))
    report = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert [decision["stage"] for decision in report["decisions"]] == [1, 2]
    assert {"accuracy", "ema_accuracy"} <= report["validations"][-1].keys()
    assert (tmp_path / "out" / "timeline.png").stat().st_size > 1000
    assert "search for stage 2" in capsys.readouterr().out


def test_only_what_is_open_moves_and_costs(new_trainer: NewRun) -> None:
    trainer = new_trainer("--search", "none", "--direction", "unfreeze", "--min_trainable", "0.33")
    assert [len(stage.blocks) for stage in trainer.growth.plan.stages] == [2, 4, 6]
    before = weights(trainer)
    moved: list[set[str]] = []
    trainer.train(lambda _: moved.append({n for n, value in weights(trainer).items() if not value.equal(before[n])}))
    first = {name for name in before if name.startswith(("vit.layers.4", "vit.layers.5", "vit.layernorm", "class"))}
    assert moved[0] <= first
    assert moved[3] == first
    assert moved[-1] == set(before)
    flops = trainer.metrics.rows["flops"]
    assert flops[0] < flops[4] < flops[-1]


def test_growth_off_trains_everything_at_once(new_trainer: NewRun) -> None:
    trainer = new_trainer("--growth", "off", "--max_train_steps", "1", "--warmup_steps", "0")
    before = weights(trainer)
    trainer.train()
    assert len(trainer.growth.plan.stages) == 1
    assert not [name for name, value in weights(trainer).items() if value.equal(before[name])]


def test_resolution_grows_with_a_fixed_schedule(new_trainer: NewRun) -> None:
    trainer = new_trainer("--search", "none", "--resolutions", "8", "12", "16")
    trainer.train()
    assert trainer.metrics.rows["resolution"] == [8.0] * 4 + [12.0] * 4 + [16.0] * 4
    with pytest.raises(ConfigError, match=r"search='zero_shot' cannot choose among resolutions=\(8, 12, 16\)"):
        new_trainer("--resolutions", "8", "12", "16")


def test_freezing_block_after_block_resumes_bit_for_bit(new_trainer: NewRun) -> None:
    flags = ("--search", "none", "--direction", "freeze", "--min_trainable", "0.33")
    whole = new_trainer(*flags)
    whole.train()
    flops = whole.metrics.rows["flops"]
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] < flops[0]
    for step in (4, 7):  # where blocks freeze, and inside a stage
        resumed = new_trainer(*flags, "--resume_from_checkpoint", f"checkpoint-{step}")
        resumed.train()
        assert same(weights(whole), weights(resumed)), step
        assert same(averages(whole), averages(resumed)), step


def test_blocks_do_not_warm_up_again(new_trainer: NewRun) -> None:
    with pytest.raises(ConfigError, match=r"--rewarm_steps 3 needs an optimizer .*leave it at 0"):
        new_trainer("--search", "none", "--direction", "unfreeze", "--rewarm_steps", "3")


def test_windows_of_blocks_resume_bit_for_bit(new_trainer: NewRun) -> None:
    flags = ("--search", "none", "--direction", "window", "--num_stages", "6", "--sweeps", "2")
    flags += ("--window_state", "park")
    whole = new_trainer(*flags)
    assert [stage.blocks for stage in whole.growth.plan.stages] == [(0, 1), (2, 3), (4, 5)] * 2
    whole.train()
    for step in (6, 9):  # where the second sweep begins, and inside a stage of it
        resumed = new_trainer(*flags, "--resume_from_checkpoint", f"checkpoint-{step}")
        resumed.train()
        assert same(weights(whole), weights(resumed)), step
        assert same(averages(whole), averages(resumed)), step


def test_a_resumed_run_ends_bit_identical(new_trainer: NewRun) -> None:
    """From the middle of the recording, at a search, and inside a stage."""
    whole = new_trainer()
    whole.train()
    for step in (1, 4, 9):
        resumed = new_trainer("--resume_from_checkpoint", f"checkpoint-{step}")
        assert resumed.step == step
        resumed.train()
        assert same(weights(whole), weights(resumed)), step
        assert same(averages(whole), averages(resumed)), step
        assert resumed.growth.plan == whole.growth.plan
        assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


def test_a_resumed_run_keeps_its_settings(flags: list[str], fresh: Callable[[], None]) -> None:
    short = [*flags, "--search", "none", "--max_train_steps", "3"]
    fresh()
    run(FINETUNING, FINETUNING.parse(short))
    fresh()
    with pytest.raises(StateError, match=r"--seed was \d+, now 7"):
        run(FINETUNING, FINETUNING.parse([*short, "--seed", "7", "--resume_from_checkpoint", "latest"]))


def test_a_head_is_kept_for_its_own_classes(tmp_path: Path, flags: list[str]) -> None:
    model = load_pretrained(str(tmp_path / "pretrained"))
    head = model.classifier
    fit_head(model, ["a", "b", "c", "d"])
    assert model.classifier is head
    fit_head(model, ["b", "a", "c", "d"])  # other labels in the same number
    assert model.classifier is not head
    assert model.classifier.out_features == 4


WHAT_DOES_NOT = [
    (("--model", ""), ModelError, "--model is missing: give the folder that vit/pretrain.py left"),
    (("--model", "nowhere"), ModelError, "--model nowhere is no folder: give one, timm:<architecture>"),
    (("--img_size", "18"), ModelError, "image_size=18 is not a multiple of the patch, 4: use 16 or 20"),
    (("--batch_size", "64"), DataError, "--batch_size 64 on 1 processes is more than the 54 training images"),
    (("--lr", "-1"), ConfigError, "--lr -1.0 is not allowed"),
]


def test_what_does_not_fit_is_refused(new_trainer: NewRun) -> None:
    for more, error, message in WHAT_DOES_NOT:
        with pytest.raises(error, match=message):
            new_trainer(*more)


def test_what_cannot_be_downloaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="--model transformers:some/model cannot be loaded"):
        load_pretrained("transformers:some/model")


@pytest.mark.distributed
def test_two_processes_end_with_equal_weights(flags: list[str], tmp_path: Path) -> None:
    environments = rank_environments(2, {**os.environ, "MPLCONFIGDIR": str(tmp_path)})
    run_forked(SCRIPT, [*flags, "--checkpointing_steps", "100"], environments, tmp_path)
    report = json.loads((tmp_path / "out" / "growth.json").read_text())
    # Ranks whose weights differ at a stage boundary or at the end are an error, so this run ended with equal ones.
    assert [len(stage["blocks"]) for stage in report["plan"]["stages"]][-1] == 6
    assert len(report["decisions"]) == 2


def test_an_error_is_one_line(fresh: Callable[[], None], tmp_path: Path) -> None:
    fresh()
    with pytest.raises(SystemExit, match="^error: --model is missing: give the folder that vit/pretrain.py left"):
        main(FINETUNING, ["--output_dir", str(tmp_path)])
