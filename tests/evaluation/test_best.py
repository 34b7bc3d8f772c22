"""The file of the best weights: replaced as a whole, kept in checkpoints without taking space."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoprog_diffusion.evaluation.best import BestWeights
from autoprog_diffusion.growth.errors import StateError


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), value), "b": torch.full((2, 2), value)}


@pytest.fixture
def best(tmp_path: Path) -> BestWeights:
    return BestWeights(tmp_path / "best")


def test_weights_are_replaced_and_leave_no_other_file(best: BestWeights) -> None:
    assert best.step is None
    best.save(weights(1.0), 10)
    best.save(weights(2.0), 20)
    assert best.step == 20
    assert torch.equal(best.load()["a"], weights(2.0)["a"])
    assert [path.name for path in best.path.parent.iterdir()] == ["weights.safetensors"]


def test_a_checkpoint_keeps_its_own(best: BestWeights, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    best.keep_in(checkpoint)  # there is none yet
    best.take_from(checkpoint, None)
    best.save(weights(1.0), 10)
    (best.path.parent / "stage_embedding.safetensors").write_bytes(b"rows")
    best.keep_in(checkpoint)
    assert best.path.stat().st_ino == (checkpoint / "best" / best.path.name).stat().st_ino
    best.save(weights(2.0), 20)
    best.take_from(checkpoint, 10)
    assert best.step == 10
    assert torch.equal(best.load()["b"], weights(1.0)["b"])
    result = tmp_path / "result"
    result.mkdir()
    best.bring_beside(result)
    assert [path.name for path in result.iterdir()] == ["stage_embedding.safetensors"]
    best.take_from(checkpoint, None)
    assert best.step is None


def test_a_checkpoint_without_them_is_refused(best: BestWeights, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    with pytest.raises(StateError, match="lacks the best weights of the run, those of step 10"):
        best.take_from(checkpoint, 10)
    best.save(weights(1.0), 20)
    best.keep_in(checkpoint)
    with pytest.raises(StateError, match="those of step 10"):
        best.take_from(checkpoint, 10)
