"""What a run reads: spelled in another way, lying in its output folder, or written by another script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoprog_diffusion.growth import GrowthPlan, PlanError, StateError
from autoprog_diffusion.training.checkpoints import newest_in_words
from autoprog_diffusion.training.flag_checks import idle_flags, short_epoch
from autoprog_diffusion.training.flag_classes import changes
from autoprog_diffusion.training.given_plan import plan_for
from autoprog_diffusion.training.history import read_starts
from autoprog_diffusion.training.output import OutputError, check_inputs
from autoprog_diffusion.training.run import ready, run

from ..tasks.conftest import forget
from .conftest import Script, load_recipe


SD = load_recipe("finetune_sd").FinetuneSD()
LORA = load_recipe("finetune_lora").FinetuneLora()
FLAGS = ("--train_batch_size", 4, "--validation_prompts", "a", "--checkpointing_steps", 2, "--num_stages", 2)
Parse = Callable[..., Any]


@pytest.fixture
def parse(script: Script, tmp_path: Path) -> Iterator[Parse]:
    """Arguments of a short run in this process."""

    def make(steps: int, *more: object, recipe: Any = SD) -> Any:
        forget()
        own = ("--cache_dir", script.model.parent / "hub", *FLAGS, "--max_train_steps", steps, *more)
        return recipe.parse([*script.flags(tmp_path / "out"), *map(str, own)])

    yield make
    forget()


def test_resume_with_the_plan_of_a_file_and_more_steps(parse: Parse, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    run(SD, parse(4))
    shutil.copy(tmp_path / "out" / "growth_plan.json", plan)
    run(SD, parse(4, "--growth_plan", plan, "--overwrite_output_dir"))
    with pytest.raises(PlanError, match=r"--growth_plan is for 4 steps, the run has 8: use --max_train_steps 4"):
        ready(SD, parse(8, "--growth_plan", plan, "--overwrite_output_dir"))
    run(SD, parse(4, "--growth_plan", plan, "--overwrite_output_dir"))
    for steps, wanted, at in ((8, "checkpoint-2", 2), (12, "latest", 8)):
        args = parse(steps, "--growth_plan", plan, "--resume_from_checkpoint", wanted)
        trainer = ready(SD, args)
        assert trainer.step == at
        assert [stage.start for stage in trainer.growth.plan.stages] == [0, 2]
        assert trainer.growth.plan.num_training_steps == steps
        trainer.train()
        trainer.checkpoint()


def test_resume_says_once_what_latest_leaves_aside(
    parse: Parse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    ready(SD, parse(2, "--resume_from_checkpoint", "latest"))
    assert capsys.readouterr().err.count("are left aside") == 1
    assert newest_in_words(tmp_path / "out" / "checkpoints") == "No checkpoint is complete."


def test_resume_by_another_script_is_refused_by_name(parse: Parse) -> None:
    run(SD, parse(2))
    with pytest.raises(StateError, match=r"was begun by another script .* Resume it with that script"):
        ready(LORA, parse(4, "--resume_from_checkpoint", "latest", recipe=LORA))


def test_resume_takes_a_folder_for_the_same_however_it_is_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    before = {"train_data_dir": str(tmp_path / "images"), "instance_prompt": "a"}
    for same in ("images", "images/", "./images", "link"):
        assert changes(before, {"train_data_dir": same}, "must be equal") == {}
    assert changes(before, {"train_data_dir": "others"}, "must be equal")
    assert changes(before, {"instance_prompt": "./a"}, "must be equal")


RESUME_NAMES = [[], 3, {"starts": [3]}, {"starts": [{"step": 0}]}, {"starts": "x"}, {"starts": {"a": 1}}]


def test_resume_names_a_run_json_that_holds_something_else(tmp_path_factory: pytest.TempPathFactory) -> None:
    for values in RESUME_NAMES:
        tmp_path = tmp_path_factory.mktemp("case")
        file = tmp_path / "run.json"
        file.write_text(json.dumps(values))
        with pytest.raises(StateError, match=r"run\.json, the settings of the run, cannot be read: .* or delete it"):
            read_starts(file)


@pytest.mark.parametrize(
    ("flag", "place"),
    [("pretrained_model_name_or_path", ""), ("growth_plan", "growth.json"), ("class_data_dir", "class_images")],
)
def test_resume_overwrite_deletes_nothing_that_the_run_reads(tmp_path: Path, flag: str, place: str) -> None:
    (tmp_path / "class_images").mkdir()
    for name in ("growth.json", "model_index.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(OutputError, match=f"--{flag} .* Choose another --output_dir"):
        check_inputs(tmp_path, {flag: str(tmp_path / place)}, overwrite=True)
    assert (tmp_path / "model_index.json").exists()
    # A run may share the folder of its images, as long as it deletes nothing there.
    check_inputs(tmp_path, {"train_data_dir": str(tmp_path)}, overwrite=False)


def test_resume_wins_over_overwriting_and_says_so() -> None:
    sentences = idle_flags({"overwrite_output_dir", "resume_from_checkpoint"}, {}, set())
    assert sentences == ["--overwrite_output_dir has no effect: --resume_from_checkpoint goes on with the run."]


def test_resume_position_and_a_step_that_is_longer_than_an_epoch() -> None:
    assert short_epoch(6, 100) == "an epoch has 6 batches, fewer than an optimizer step asks for (100): it takes 6."
    assert short_epoch(6, 6) is None


def test_resume_plan_keeps_what_has_begun(tmp_path: Path) -> None:
    plan = GrowthPlan.from_dict(
        {
            "plan_version": 1,
            "num_blocks": 2,
            "num_training_steps": 4,
            "stages": [{"start": 0, "blocks": [0, 1]}, {"start": 2, "blocks": [0]}],
        }
    )
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "complete.json").write_text('{"step": 1}')
    assert plan_for(None, 8, folder) is None
    assert plan_for(plan, 4, None) == plan
    assert plan_for(plan, 8, folder) == plan.extended(8, 1)
