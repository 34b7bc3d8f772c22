"""What the report says of a run: how good it was over time, and what to do next."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprog_diffusion.reporting.advice import advice, clearly_above, resume_command
from autoprog_diffusion.reporting.compare import common_goal, comparison_notes, groups_of
from autoprog_diffusion.reporting.held_out import Evaluation, HeldOut
from autoprog_diffusion.reporting.quality import ACCURACY, HELD_OUT, TRAINING, against, best, common_measure, time_to
from autoprog_diffusion.reporting.run_folder import Run, read_run
from autoprog_diffusion.reporting.summary import saving_in_words, what_it_did

from .made import Made, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "run", Made(steps=40, blocks=4, stages=2)))


def measured_as(run: Run, losses: dict[int, float], **changes: Any) -> Run:
    """The run with another held-out loss; `best` is that of the file's rule, of trained weights alone."""
    evaluations = tuple(Evaluation(step, loss, 0.01, (), 0.1) for step, loss in losses.items())
    trained = [(step, loss) for step, loss in losses.items() if step]
    best = min(trained, key=lambda pair: pair[1])
    held_out = HeldOut(evaluations, (), best, None, 10, 4)
    return replace(run, held_out=replace(held_out, **changes))


def told(run: Run) -> str:
    return " ".join(str(line) for line in advice(run))


def test_a_loss_that_rose_again_names_the_best_step_and_what_was_wasted(run: Run) -> None:
    rose = measured_as(run, {0: 1.0, 10: 0.5, 20: 0.4, 30: 0.45, 40: 0.5})
    text = told(rose)
    assert "lowest at step 20 and is clearly higher at step 40" in text
    wasted = sum(run.rows["seconds"][20:])
    assert f"which took {wasted:.1f} s," in text
    assert "--max_train_steps 20" in text
    for export in ("best", "last"):
        settings = {**run.start.settings, "export": export}
        exported = replace(rose, starts=(replace(run.start, settings=settings),))
        assert f"The saved model has the {export} weights." in told(exported)


def test_a_loss_that_rose_within_its_noise_is_no_reason(run: Run) -> None:
    assert "higher" not in told(measured_as(run, {10: 0.5, 20: 0.4, 40: 0.419}))
    assert "higher" in told(measured_as(run, {10: 0.5, 20: 0.4, 40: 0.421}))
    held_out = measured_as(run, {10: 0.5, 20: 0.4}).held_out
    assert held_out is not None
    assert clearly_above(0.5, 0.4, held_out)
    assert not clearly_above(0.41, 0.4, held_out)
    assert not clearly_above(float("nan"), 0.4, held_out)


def test_a_loss_that_still_falls_asks_for_more_steps(run: Run) -> None:
    falling = measured_as(run, {0: 1.0, 20: 0.5, 40: 0.3})
    assert "--max_train_steps 80 --resume_from_checkpoint latest" in told(falling)
    assert "--max_train_steps 80" not in told(measured_as(run, {0: 1.0, 20: 0.305, 40: 0.3}))
    stopped = measured_as(run, {0: 1.0, 20: 0.5, 40: 0.3}, stopped={"step": 40})
    assert "--max_train_steps 80" not in told(stopped)


def test_training_that_never_helped_is_told(run: Run) -> None:
    assert "Training never brought the held-out loss below that of the model it began with, 0.3" in told(
        measured_as(run, {0: 0.3, 20: 0.5, 40: 0.4})
    )


def test_runs_without_a_held_out_loss_and_those_that_lost_time_or_data_are_told(run: Run) -> None:
    assert "No held-out loss was measured" in told(replace(run, held_out=None))
    validated = replace(run, held_out=None, validations=({"step": 40.0, "accuracy": 0.5},))
    assert "No held-out loss" not in told(validated)
    slow = replace(run, saving={"time": 0.8})
    assert "would have taken 80\u00a0% of the time" in told(slow)
    waiting = tuple(replace(stage, cpu_seconds=0.1 * stage.seconds) for stage in run.stages)
    assert "CPU time is 10\u00a0% of wall time" in told(replace(slow, stages=waiting))
    assert "would have taken" in told(replace(slow, stages=waiting, device="a GPU"))
    lossy = replace(run.data[0], used=50, found=100, left_out={"damaged": 30, "beyond --max_train_samples 50": 20})
    assert "30 files of images were left out, 30\u00a0% of what was found" in told(replace(run, data=(lossy,)))
    meant = dataclasses.replace(lossy, left_out={"held out for validation": 50})
    assert "were left out" not in told(replace(run, data=(meant,)))
    dull = replace(measured_as(run, {20: 0.4, 40: 0.4}), saving={}, data=())
    assert told(dull).startswith("Nothing stands out.")


@pytest.mark.parametrize(
    ("command", "processes", "expected"),
    [
        (("a b.py", "--x", "$y"), 1, "accelerate launch 'a b.py' --x '$y' --resume_from_checkpoint latest"),
        (
            ("a.py", "--resume_from_checkpoint", "checkpoint-3", "--x"),
            2,
            "torchrun --nproc_per_node 2 a.py --x --resume_from_checkpoint latest",
        ),
        (("a.py", "--resume_from_checkpoint=z"), 1, "accelerate launch a.py --resume_from_checkpoint latest"),
    ],
)
def test_the_command_that_goes_on(run: Run, command: tuple[str, ...], processes: int, expected: str) -> None:
    start = replace(run.start, command=command, processes=processes)
    assert resume_command(replace(run, starts=(start,))) == expected


def test_quality_over_time_is_that_of_adding_up_every_step(run: Run) -> None:
    draws = random.Random(0)
    seconds = [draws.random() for _ in range(40)]
    losses = {step: draws.random() for step in range(0, 44, 4)}
    told = replace(measured_as(run, losses), rows={**run.rows, "seconds": seconds})
    expected = []
    for step, value in losses.items():
        spent = 0.0
        for index in range(40):
            if index < step:
                spent += seconds[index]
        expected.append((pytest.approx(spent), value))
    assert against(told, HELD_OUT, "seconds") == expected
    for goal in (0.0, 0.3, 0.9):
        reached = [spent for (spent, value) in against(told, HELD_OUT, "seconds") if value <= goal]
        assert time_to(told, HELD_OUT, goal) == (reached[0] if reached else None)
    assert best([(1, 3.0), (2, float("nan")), (3, 2.0)], HELD_OUT) == (3, 2.0)
    assert best([(1, 3.0), (3, 2.0)], ACCURACY) == (1, 3.0)
    assert best([], HELD_OUT) is None


def test_runs_are_judged_by_what_all_have(run: Run) -> None:
    accuracy = ({"step": 40.0, "accuracy": 0.5, "ema_accuracy": 0.75},)
    bare = replace(run, held_out=None)
    validated = replace(bare, validations=accuracy)
    assert common_measure([run, run]) is HELD_OUT
    assert common_measure([run, bare]) is TRAINING
    assert common_measure([validated, replace(run, validations=accuracy)]) is ACCURACY
    assert "no judge of which run is better" in " ".join(comparison_notes([run, bare], TRAINING))
    assert common_goal([measured_as(run, {10: 0.4}), measured_as(run, {10: 0.2})], HELD_OUT) == 0.4
    assert common_goal([validated, replace(bare, validations=({"step": 1.0, "accuracy": 0.5},))], ACCURACY) == 0.5
    assert common_goal([run, bare], HELD_OUT) is None


def test_what_makes_runs_hard_to_compare_is_said(run: Run, tmp_path: Path) -> None:
    assert comparison_notes([run, run], HELD_OUT) == []
    other = replace(measured_as(run, {10: 0.4}), device="a GPU", starts=(replace(run.start, data="other"),), rows={})
    text = " ".join(comparison_notes([run, other], HELD_OUT))
    for words in ("different data", "different images", "different devices", "without a curve"):
        assert words in text


def test_models_are_told_apart_by_class_blocks_and_name(run: Run) -> None:
    def named(name: str | None, model_class: str = "Denoiser") -> Run:
        settings = {**run.start.settings, "pretrained_model_name_or_path": name}
        return replace(run, starts=(replace(run.start, settings=settings, model_class=model_class),))

    groups = groups_of([named("hub/sd"), named("/data/sd"), named("hub/xl"), named(None), named("sd", "Other")])
    assert [len(group) for group in groups] == [2, 1, 1, 1]
    older = named("sd", "")
    assert len(groups_of([named("hub/sd"), older])) == 1


def test_savings_in_words(run: Run) -> None:
    assert saving_in_words(replace(run, saving={"flops": 1.25, "time": 0.5})) == (
        "Against as many steps of full training: 20\u00a0% fewer FLOPs and 100\u00a0% more time."
    )
    assert saving_in_words(replace(run, saving={"flops": None})).startswith("No stage trained all blocks")


def test_a_resumed_run_says_where(run: Run) -> None:
    resumed = replace(run, starts=(run.start, replace(run.start, step=1200)))
    assert "It was resumed 1 time, at step 1,200." in list(what_it_did(resumed))
