"""A pretraining run killed and started again: bit for bit the run that was not, also in the middle of a search."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprog_diffusion.growth.errors import StateError

from .pretraining import averages, new_trainer_in, same, weights


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--search", "fixed", "--sched", "cosine_by_cost"), ("checkpoint-4", "checkpoint-6")),
        # The search of stage 1 takes steps 1 to 3; checkpoint 2 lies in it, 3 at its end.
        (("--search", "one_shot"), ("checkpoint-2", "checkpoint-3", "checkpoint-7")),
        pytest.param(("--search", "random"), ("checkpoint-6",), marks=pytest.mark.slow),
        pytest.param(("--search", "fixed", "--grad_accum_steps", "2"), ("checkpoint-5",), marks=pytest.mark.slow),
    ],
    ids=["fixed", "one shot", "random", "accumulation"],
)
def test_a_resumed_run_ends_bit_identical(tmp_path: Path, flags: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    new_trainer = new_trainer_in(tmp_path)
    flags = (*flags, "--checkpointing_steps", "1", "--checkpoints_total_limit", "20")
    whole = new_trainer(*flags)
    whole.train()
    for name in wanted:
        resumed = new_trainer(*flags, "--resume_from_checkpoint", name)
        assert resumed.step == int(name.split("-")[1])
        resumed.train()
        assert same(weights(whole), weights(resumed))
        assert same(averages(whole), averages(resumed))
        for column in ("loss", "stage", "searching", "blocks", "resolution", "flops"):
            assert resumed.metrics.rows[column] == whole.metrics.rows[column]
        assert resumed.growth.plan == whole.growth.plan


def test_there_is_nothing_to_resume_at_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new_trainer_in(tmp_path)("--resume_from_checkpoint", "latest").step == 0
    assert "starting from the beginning" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--operator", "momentum"), "operator was 'stacking', now 'momentum'"),
    ],
    ids=["other operator"],
)
def test_a_checkpoint_of_another_plan_is_refused(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    new_trainer = new_trainer_in(tmp_path)
    new_trainer("--checkpointing_steps", "6").train()
    with pytest.raises(StateError, match=message):
        new_trainer(*flags, "--resume_from_checkpoint", "latest")
