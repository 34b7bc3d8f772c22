"""Plans: FLOPs of real steps, command lines that the recipes read, and what cannot be planned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprog_diffusion import GrowthConfig
from autoprog_diffusion.commands import main as program
from autoprog_diffusion.commands.plan import show
from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.growth.scheduler import GrowthScheduler
from autoprog_diffusion.planner.candidates import (
    ONE_STAGE,
    Candidate,
    Cost,
    Estimator,
    in_backward,
    search,
    settings,
    smallest,
)
from autoprog_diffusion.planner.command_lines import command_line, flags, recipe_of
from autoprog_diffusion.planner.errors import PlannerError
from autoprog_diffusion.planner.inputs import make_inputs
from autoprog_diffusion.planner.models import find_model
from autoprog_diffusion.planner.planning import Planned, plan
from autoprog_diffusion.planner.profile import Profile
from autoprog_diffusion.planner.quality import Quality, measured
from autoprog_diffusion.planner.settings import Plan
from autoprog_diffusion.planner.shapes import Shape
from autoprog_diffusion.training.recipe_arguments import check_arguments

from ..recipes.conftest import load_recipe


STEPS = 40
SIDE = 8
CONFIG = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": SIDE,
    "num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 16,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 8,
}
RECIPES = {
    "finetune_sd.py": "FinetuneSD",
    "finetune_sdxl.py": "FinetuneSDXL",
    "finetune_dit.py": "FinetuneDiT",
    "finetune_flow.py": "FinetuneFlow",
    "finetune_lora.py": "FinetuneLora",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "transformer"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path.parent


@pytest.fixture(scope="module")
def planned(folder: Path) -> Planned:
    return plan(str(folder), growth=GrowthConfig(), steps=STEPS, batch=2, memory_gb=1.0, tflops=1.0, in_process=True)


def test_flops_are_those_of_real_steps(planned: Planned, folder: Path) -> None:
    check_flops(planned, GrowthConfig())
    config = GrowthConfig(direction="window")
    check_flops(plan(str(folder), growth=config, batch=2, in_process=True), config)


def check_flops(planned: Planned, config: GrowthConfig) -> None:
    model = planned.source.build()
    growth = GrowthScheduler(model, config)
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.0)
    growth.prepare(model, num_training_steps=len(planned.stages), optimizer=optimizer)
    inputs = make_inputs(model, Shape(batch=2, side=SIDE))
    for stage in planned.stages:
        with flop_counter() as counter:
            model(**inputs, return_dict=False)[0].square().mean().backward()
        assert stage.exact
        assert stage.flops == counter.get_total_flops()
        assert stage.trained == sum(each.numel() for each in model.parameters() if each.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        growth.step()


def test_the_whole_is_that_of_its_stages(planned: Planned) -> None:
    values = planned.to_dict()
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(values))
    assert [stage.blocks for stage in planned.stages] == [4, 3, 2, 1]
    assert sum(stage.steps for stage in planned.stages) == STEPS
    full = planned.others[0]
    assert planned.stages[0].flops == full.cost.flops
    assert planned.share == pytest.approx(planned.flops / (full.cost.flops * STEPS))
    assert planned.seconds == pytest.approx(planned.flops / 1e12)
    assert planned.verdict.startswith("Growth is not worth it for speed alone, a shorter full run is as good")
    assert str(planned.quality) == "+0.7 to +2.1 % loss"


def test_every_row_says_what_it_loses(
    planned: Planned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    show(planned)
    text = " ".join(capsys.readouterr().out.split())
    assert "see below" not in text
    assert text.count("% loss") >= 4
    assert all(str(candidate.quality) in text for candidate, _ in planned.best)


def test_eight_bit_adam_inside_the_backward_pass_is_planned_without_windows(profile: Profile) -> None:
    estimator = Estimator(profile, None, STEPS)
    plain = estimator.candidate("full", Plan("", ONE_STAGE), 1).peak
    found = in_backward(profile, estimator, plain, (2, 1))
    assert found is not None
    assert (found.trained, found.plan.optimizer, found.plan.step_in_backward) == ("full", "adamw8bit", True)
    assert found.peak < plain
    assert in_backward(profile, estimator, 1.0, (1,)) is None


def flag_sets(profile: Profile) -> Iterator[Candidate]:
    """A candidate for every value of a setting, of every kind that may train."""
    seen: set[tuple[str, str, str]] = set()
    for trained, settled in settings(profile):
        named = {**settled.to_dict(), **settled.growth}
        values = {(trained.split()[0], name, str(value)) for name, value in named.items() if name != "growth"}
        if not values <= seen:
            yield Candidate(
                trained=trained,
                plan=settled,
                batch=2,
                stages=(),
                peak=0,
                split={},
                host=0,
                cost=Cost(0.0, None),
                quality=Quality(None, None),
            )
        seen |= values


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux-dev", "dit-xl", "z-image"])
def test_recipes_read_the_command_lines(name: str, profile: Profile) -> None:
    source = find_model(name)
    for candidate in flag_sets(profile):
        recipe = recipe_of(source, lora=candidate.plan.lora is not None)
        line = command_line(source, candidate, pixels=64, steps=STEPS)
        if recipe is None:
            assert line.startswith("GrowthScheduler(model, GrowthConfig(")
            continue
        assert line.startswith(f"accelerate launch recipes/{recipe} ")
        script = getattr(load_recipe(recipe.removesuffix(".py")), RECIPES[recipe])()
        args = script.parse(flags(source, candidate, pixels=64, steps=STEPS))
        check_arguments(args)
        growth = candidate.plan.growth
        assert args.train.optimizer == candidate.plan.optimizer
        assert args.train.trained_dtype == candidate.plan.trained_dtype
        assert args.train.train_batch_size == candidate.batch
        assert args.train.step_in_backward == candidate.plan.step_in_backward
        assert args.growth.checkpointing == growth.get("checkpointing")
        if args.growth.growth == "on":
            assert args.growth.frozen_dtype == growth.get("frozen_dtype")
            assert args.growth.num_stages == growth.get("num_stages", 4)


def test_where_nothing_fits_the_smallest_budget_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], profile: Profile
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["plan", str(folder), "--memory_gb", "0.0000001"])
    assert ended.value.code == 3
    assert "Nothing fits" in (text := " ".join(capsys.readouterr().out.split()))
    assert "The smallest budget is" in text
    estimator = Estimator(profile, None, STEPS)
    least = smallest(profile, estimator)
    assert search(profile, estimator, least.peak - 1, (1,)) == []
    assert [one.peak for one in search(profile, estimator, least.peak, (1,))] == [least.peak]


def test_json_is_for_machines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["plan", str(folder), "--gpu", "4090", "--json", "--steps", str(STEPS)])
    assert ended.value.code == 0
    values = json.loads(capsys.readouterr().out)
    assert len(values["stages"]) == 4
    assert len(values["best"]) == 4
    assert values["best"][0]["command"].startswith("accelerate launch recipes/finetune_flow.py")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"resolutions": (0.5, 1.0, 1.0, 1.0)}, "resolutions=.* cannot be planned"),
        ({"search": "zero_shot"}, "search='zero_shot' cannot be planned"),
        ({"embedders_always": True}, "embedders_always=True cannot be planned"),
        ({"checkpointing": "auto", "memory_gb": 1.0}, "checkpointing='auto' cannot be planned"),
    ],
)
def test_growth_that_cannot_be_planned_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(PlannerError, match=message):
        plan("sdxl", growth=GrowthConfig(**setting))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sdxll"], "Did you mean sdxl"),
        (["sdxl", "--gpu", "4900"], "--gpu 4900 is not known. Did you mean 4090"),
        (["sdxl", "--memory_gb", "-1"], "--memory_gb -1.0 is impossible"),
        (["sdxl", "--memory_gb", "nan"], "--memory_gb nan is impossible"),
        (["sdxl", "--memory_gb", "inf"], "--memory_gb inf is impossible"),
        (["sdxl", "--tflops", "0"], "--tflops 0.0 is impossible"),
        (["sdxl", "--batch", "0"], "batch=0 is not allowed"),
        (["sdxl", "--steps", "0"], "steps=0 is not allowed"),
        (["sdxl", "--calibration", "nowhere.json"], "nowhere.json is no calibration"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["plan", *words])
    assert ended.value.code == program.FAILED
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_default_is_what_the_recipes_do(capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan("dit-xl")
    assert planned.trained == "freeze from 40%"
    assert [stage.steps for stage in planned.stages] == [400, 79, 79, 79, 79, 79, 80, 125]
    assert planned.averaged
    assert planned.quality.highest == max(measured("trained", "freeze from 40%") or [])
    assert "freeze from 40% with an average of the weights" in planned.verdict
    show(planned)
    assert "It averages the weights" in capsys.readouterr().out
