"""A rank that is killed at the worst moment: the job ends, and the resumed run is the run that was never killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from .launching import finish, found_wrong, launch, was_killed
from .worker import Settings


SETTINGS = Settings(search="zero_shot", accumulation=2, ema=True)
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two ranks that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, SETTINGS, 2)
    assert not found_wrong(folder)
    return folder


@pytest.mark.parametrize("dying_rank", [0, 1])
@pytest.mark.parametrize(("place", "at"), [("step", 7), ("search", 5), ("rebuild", 10), ("checkpoint", 9)])
def test_a_killed_rank_ends_the_job_and_nothing_is_lost(
    whole: Path, tmp_path: Path, place: str, at: int, dying_rank: int
) -> None:
    status, output = launch(tmp_path, replace(SETTINGS, place=place, at=at, dying_rank=dying_rank), 2)
    assert status != 0
    assert was_killed(tmp_path), output[-3000:]
    assert not (tmp_path / "final.safetensors").exists()
    finish(tmp_path, SETTINGS, 2)
    for name in ("final.safetensors", "decisions.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert not found_wrong(tmp_path)
