"""Trackers get the metrics of every step, pictures, and the settings with the plan: read back from their own files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from autoprog_diffusion.growth import GrowthPlan, Stage
from autoprog_diffusion.training.tracking import (
    LOGGED,
    hyper_parameters,
    log_pictures,
    log_step,
    plan_parameters,
    ranges,
)

from ..tasks.conftest import forget
from .rows import ROW


PLAN = GrowthPlan(5, 20, (Stage(0, (0, 1, 2, 3, 4)), Stage(5, (1, 2, 4)), Stage(9, ())))
PICTURES = [Image.new("RGB", (6, 4), (250, 20 * index, 0)) for index in range(3)]


class Settings:
    """The settings of a growth object."""

    def to_dict(self) -> dict[str, Any]:
        return {"num_stages": 3, "boundaries": (0.25, 0.45), "ema_decay": None, "derived": True}


class Growing:
    """As much of a growth object as trackers are told of."""

    config = Settings()
    plan = PLAN


@dataclass(frozen=True)
class Group:
    num_stages: int = 4
    learning_rate: float = 1e-3
    validation_prompts: tuple[str, ...] = ("a <b>", "c")


@dataclass(frozen=True)
class Flags:
    growth: Group = Group()
    given: tuple[str, ...] = ("num_stages",)


class Kept(GeneralTracker):
    """A tracker that keeps what it is given; `images` says whether it takes pictures."""

    name = "kept"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__(_blank=True)
        self.settings: dict[str, Any] = {}
        self.scalars: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> Kept:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        assert not options
        self.scalars.append((step, values))

    def finish(self) -> None:
        pass


class KeptWithPictures(Kept):
    """A tracker that takes pictures, too."""

    name = "kept_with_pictures"

    def __init__(self) -> None:
        super().__init__()
        self.pictures: list[tuple[int | None, dict[str, Any]]] = []

    def log_images(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        assert not options
        self.pictures.append((step, values))


@pytest.fixture(autouse=True)
def new_state() -> Iterator[None]:
    forget()
    yield
    forget()


def fill(accelerator: Accelerator, parameters: dict[str, Any]) -> None:
    """What a run of two steps gives its trackers."""
    accelerator.init_trackers("project", config=parameters)
    for step in (1, 2):
        log_step(accelerator, {**ROW, "loss": 1.0 / step, "stage": step - 1}, rate=0.5, step=step)
    log_pictures(accelerator, "samples", PICTURES, step=2)
    log_pictures(accelerator, "samples", [], step=2)
    accelerator.end_training()


def test_hyper_parameters_are_flat_numbers_and_words() -> None:
    values = hyper_parameters(Growing(), Flags())  # type: ignore[arg-type]
    assert values == {
        "num_stages": 4,  # as the flag says
        "boundaries": "(0.25, 0.45)",
        "ema_decay": "None",
        "derived": True,
        "learning_rate": 1e-3,
        "validation_prompts": "('a <b>', 'c')",
        **plan_parameters(PLAN),
    }
    assert all(isinstance(value, bool | int | float | str) for value in values.values())


def test_a_plan_is_told_stage_by_stage() -> None:
    assert plan_parameters(PLAN) == {
        "plan/steps": 20,
        "plan/blocks": 5,
        "plan/stages": 3,
        "plan/stage_1/start": 0,
        "plan/stage_1/blocks": "0-4",
        "plan/stage_1/resolution": 1.0,
        "plan/stage_2/start": 5,
        "plan/stage_2/blocks": "1-2, 4",
        "plan/stage_2/resolution": 1.0,
        "plan/stage_3/start": 9,
        "plan/stage_3/blocks": "none",
        "plan/stage_3/resolution": 1.0,
    }


def test_ranges_hold_every_number_once() -> None:
    for numbers in ([], [3], [0, 1], [0, 2], [1, 2, 3, 7, 9, 10]):
        words = ranges(numbers)
        found = []
        for word in words.split(", ") if numbers else []:
            first, _, last = word.partition("-")
            found += range(int(first), int(last or first) + 1)
        assert found == numbers


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    fill(accelerator, hyper_parameters(Growing(), Flags()))  # type: ignore[arg-type]
    events = accumulator.EventAccumulator(str(tmp_path / "project"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {*LOGGED, "lr"}
    for name, column in LOGGED.items():
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        expected = {"loss": [1.0, 0.5], "stage": [0, 1]}.get(column, [ROW[column]] * 2)
        assert logged == [(1, expected[0]), (2, expected[1])]
    (picture, *_) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (2, 6 * len(PICTURES), 4)
    (stored,) = (tmp_path / "project").glob("*/hparams.yml")
    text = stored.read_text()
    assert "plan/stage_2/blocks: 1-2, 4" in text
    assert "learning_rate: 0.001" in text
    (session,) = (tmp_path / "project").glob("*/events*")
    assert b"plan/stage_2/blocks" in session.read_bytes()  # TensorBoard's own table of hyper-parameters


def test_every_tracker_gets_scalars_and_those_that_take_some_get_pictures() -> None:
    plain = Kept()
    seeing = KeptWithPictures()
    accelerator = Accelerator(cpu=True, log_with=[plain, seeing])
    parameters = hyper_parameters(Growing(), Flags())  # type: ignore[arg-type]
    fill(accelerator, parameters)
    assert plain.settings == seeing.settings == parameters
    assert [step for step, _ in plain.scalars] == [1, 2]
    assert plain.scalars == seeing.scalars
    assert plain.scalars[0][1]["growth/trainable_fraction"] == ROW["trainable"]
    ((step, values),) = seeing.pictures
    assert step == 2
    assert np.array_equal(values["samples"], np.stack([np.asarray(picture) for picture in PICTURES]))


def test_weights_and_biases_keeps_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    accelerator = Accelerator(cpu=True, log_with="wandb")
    fill(accelerator, hyper_parameters(Growing(), Flags()))  # type: ignore[arg-type]
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    held = log.read_bytes()
    for name in ("growth/trainable_fraction", "plan/stage_2/blocks", "samples"):
        assert json.dumps(name).strip('"').encode() in held
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples*.png"))) == len(PICTURES)
