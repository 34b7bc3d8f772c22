"""The time-to-quality suite at its smallest, its arithmetic against literal twins, and the committed results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _in_folder(benchmark_folder: Callable[[str], Path]) -> None:
    benchmark_folder("time_to_quality")


@pytest.mark.slow
def test_the_suite_runs_resumes_and_prints_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from common import Runs, load
    from methods import METHODS
    from run import Options, run_all, write_summary

    for name in ("full", "unfreeze"):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], rates=METHODS[name].rates[:1]))
    folder, cache = tmp_path / "ttq", tmp_path / "cache"
    options = Options(only=("dit_classes/full",), seeds=1, steps=4, pictures=False, results=folder, cache_dir=cache)
    run_all(options)
    written = (folder / "runs.jsonl").read_text(encoding="utf-8")
    # A method's learning rates on the first seed, which is all of it here.
    assert len(written.splitlines()) == len(METHODS["full"].rates)
    run_all(replace(options, only=("dit_classes/full", "dit_classes/unfreeze")))
    assert (folder / "runs.jsonl").read_text(encoding="utf-8").startswith(written)
    full, grown = Runs(folder / "runs.jsonl").rows
    assert [full["method"], grown["method"]] == ["full", "unfreeze"]
    assert full["curve"][0]["held_out_loss"] == grown["curve"][0]["held_out_loss"]
    assert [point["step"] for point in full["curve"]][-1] == 4
    assert [stage["steps"] for stage in grown["stages"]] == [1, 1, 1, 1]
    flops = [stage["flops_per_step"] for stage in grown["stages"]]
    assert flops == sorted(flops)
    assert flops[-1] == full["stages"][0]["flops_per_step"]
    assert sum(flops) == pytest.approx(grown["curve"][-1]["flops"], rel=1e-5)

    capsys.readouterr()
    write_summary(options)
    assert "tiny DiT to new classes" in capsys.readouterr().out
    rows = load(folder / "summary.json")["dit_classes"]
    assert [row["name"] for row in rows] == ["full", "unfreeze"]
    assert rows[0]["cpu_ratio"] == pytest.approx(1.0)
    assert (folder / "plot.png").stat().st_size > 10_000


def test_unknown_names_are_refused() -> None:
    from cases import CaseError
    from run import Options, check

    with pytest.raises(CaseError, match=r"only \['sd_openmoji/ful'\] is not known"):
        check(Options(only=("sd_openmoji/ful",)))
    with pytest.raises(CaseError, match="seeds 0"):
        check(Options(seeds=0))


def test_a_curve_reaches_a_loss_between_two_evaluations() -> None:
    from table import reached

    curve = [{"cpu": c, "held_out_loss": q} for c, q in ((0.0, 1.0), (10.0, 0.6), (20.0, 0.7), (30.0, 0.5))]
    assert reached(curve, 0.8, "cpu") == pytest.approx(5.0)
    assert reached(curve, 0.55, "cpu") == pytest.approx(27.5)
    assert reached(curve, 0.4, "cpu") is None


def test_intervals_are_those_of_student() -> None:
    from common import interval
    from table import ratio_interval

    middle, low, high = interval([1.0, 2.0, 3.0])
    assert (middle, low, high) == pytest.approx((2.0, 2.0 - 4.303 / math.sqrt(3), 2.0 + 4.303 / math.sqrt(3)))
    assert all(math.isnan(end) for end in interval([1.0])[1:])
    assert ratio_interval([2.0, 8.0])[0] == pytest.approx(4.0)


def test_the_power_law_of_full_runs_is_inverted() -> None:
    from table import needed_by_full

    schedules = [(cost, 0.7 * cost**-0.2) for cost in (1.0, 2.0, 4.0)]
    assert needed_by_full(schedules, 0.7 * 3.0**-0.2) == pytest.approx(3.0)


def test_kid_is_the_literal_double_sum() -> None:
    from quality import kid

    first, second = torch.randn(5, 8), torch.randn(7, 8) + 0.3

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b) / 8 + 1) ** 3

    def pairs(xs: torch.Tensor) -> float:
        values = [kernel(a, b) for i, a in enumerate(xs) for j, b in enumerate(xs) if i != j]
        return sum(values) / len(values)

    cross = [kernel(a, b) for a in first for b in second]
    assert kid(first, second) == pytest.approx(pairs(first) + pairs(second) - 2 * sum(cross) / len(cross), rel=1e-4)


def test_what_random_plans_and_lisa_train() -> None:
    from methods import LISA_BLOCKS, lisa, random_plan

    plan = random_plan(10, 40, 3)
    assert plan.monotone
    assert [len(stage.blocks) for stage in plan.stages] == [3, 5, 8, 10]
    assert plan != random_plan(10, 40, 4)
    drawn = lisa(10, 52, 0)
    assert [stage.start for stage in drawn.stages] == list(range(0, 52, 5))
    assert len({stage.blocks for stage in drawn.stages}) > 3
    assert all(len(stage.blocks) == LISA_BLOCKS for stage in drawn.stages)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lisa", "window_4_embedders", "window_4_parked", "window_4_rewarm"])
def test_methods_that_open_and_close_blocks_run(tmp_path: Path, name: str) -> None:
    from common import Runs
    from run import Options, run_all

    only = (f"sd_openmoji/{name}",)
    run_all(Options(only=only, seeds=1, steps=8, pictures=False, results=tmp_path, cache_dir=tmp_path / "cache"))
    assert all(row["curve"][-1]["step"] == 8 for row in Runs(tmp_path / "runs.jsonl").rows)


def test_the_committed_summary_is_that_of_the_committed_runs(benchmark_folder: Callable[[str], Path]) -> None:
    from common import Runs, load, rounded
    from table import summary

    folder = benchmark_folder("time_to_quality")
    assert load(folder / "summary.json") == rounded(summary(Runs(folder / "runs.jsonl").rows))


def test_the_planner_knows_what_was_measured(benchmark_folder: Callable[[str], Path]) -> None:
    from common import Runs, load
    from planned import TABLE, table

    summary = load(benchmark_folder("time_to_quality") / "summary.json")
    assert load(TABLE) == table(summary)
    rows = {(row["choice"], row["name"]): row["loss_percent"] for row in table(summary)["rows"]}
    halves = next(row for row in summary["sd_openmoji"] if row["name"] == "window_2")
    assert rows["trained", "window 2"]["sd_openmoji"] == halves["excess"]
    runs = Runs(benchmark_folder("time_to_quality") / "runs.jsonl")
    finals = {}
    for name in ("freeze_8_nf4", "freeze_8"):
        found = runs.all(case="sd_openmoji", method=name, rate=5e-4)
        finals[name] = {row["seed"]: row["curve"][-1]["held_out_loss"] for row in found}
    narrow, exact = finals.values()
    seeds = sorted(set(narrow) & set(exact))
    percents = [100 * (narrow[seed] / exact[seed] - 1) for seed in seeds]
    assert len(seeds) == 3
    assert rows["frozen_dtype", "nf4"]["sd_openmoji"] == pytest.approx(sum(percents) / 3, abs=1e-3)


def test_later_runs_are_scaled_to_the_pace_of_the_first_ones(benchmark_folder: Callable[[str], Path]) -> None:
    from common import Runs
    from table import same_pace

    rows = Runs(benchmark_folder("time_to_quality") / "runs.jsonl").rows
    rows = [row for row in rows if row["case"] == "dit_classes"]
    scaled = same_pace(rows)

    def pace(some: list[dict[str, Any]], method: str, rate: float) -> float:
        runs = [row for row in some if (row["method"], row["rate"]) == (method, rate)]
        seconds = sum(stage["steps"] * stage["cpu_per_step"] for row in runs for stage in row["stages"])
        return seconds / sum(row["curve"][-1]["flops"] for row in runs)

    assert pace(scaled, "full_average", 5e-4) == pytest.approx(pace(rows, "full", 5e-4))
    factor = pace(scaled, "full_average", 5e-4) / pace(rows, "full_average", 5e-4)
    assert pace(scaled, "late_average", 5e-4) == pytest.approx(factor * pace(rows, "late_average", 5e-4))
    assert [row for row in scaled if row["method"] == "freeze_8"] == [
        row for row in rows if row["method"] == "freeze_8"
    ]


def test_the_stack_is_of_seeds_that_no_rate_was_tuned_on(benchmark_folder: Callable[[str], Path]) -> None:
    benchmark_folder("time_to_quality")
    from table import needed_by_full, stack

    def run(method: str, seed: int, flops: float, loss: float) -> dict[str, Any]:
        point = {"step": 1, "flops": flops, "cpu": flops, "held_out_loss": loss}
        stages = [{"steps": 1, "cpu_per_step": flops}]
        key = {"case": "sd_openmoji", "method": method, "seed": seed, "rate": 1.0}
        return {**key, "curve": [point], "stages": stages, "search_cpu": 0.0}

    lengths = [(4.0, 1.0), (2.0, 1.2), (1.0, 1.4)]
    rows = []
    for seed in (0, 1):
        for name, (flops, loss) in zip(("full", "full_short", "full_quarter"), lengths):
            rows.append(run(name, seed, flops, loss))
        rows.append(run("full_average", seed, 4.0, 0.9 + 10 * (seed == 0)))
    (row,) = [row for row in stack(rows) if row["name"] == "full_average"]
    assert row["sd_openmoji_each"] == [needed_by_full(lengths, 0.9) / 4.0]
    assert row["sd_openmoji_excess"] == "-10.0 %"
    assert row["dit_classes_flops"] == "-"


def test_larger_images_start_at_half_their_size_and_then_freeze_late() -> None:
    from larger import low_at_first, low_then_late
    from methods import METHODS

    low = low_at_first(10, 160, 0)
    assert [(stage.start, stage.resolution, len(stage.blocks)) for stage in low.stages] == [
        (0, 0.5, 10),
        (48, 1.0, 10),
    ]
    plan = METHODS["late_average"].plan
    assert plan is not None
    late = plan(10, 160, 0).stages
    assert low_then_late(10, 160, 0).stages == (low.stages[0], low.stages[1], *late[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd_128", "flow_128"])
def test_larger_images_are_trained_and_judged_at_their_own_size(name: str, tmp_path: Path) -> None:
    from cases import LARGER
    from larger import CHOSEN
    from run import Job, Options, run

    case = replace(LARGER[name], batch=2)
    options = Options(pictures=False, cache_dir=tmp_path)
    rows = {}
    for method in ("full", "low_late_average", "autoprog_zero"):
        rows[method] = run(Job(case, CHOSEN[method], 1, 1e-4, 16), options, {})
    assert rows["full"]["stages"][0]["flops_per_step"] > 3.5 * rows["low_late_average"]["stages"][0]["flops_per_step"]
    first, second = rows["low_late_average"]["stages"][:2]
    assert (first["resolution"], second["resolution"]) == (0.5, 1.0)
    # Evaluated at the full size, whatever the first stage's is; the paper's stage embedding starts at random.
    starts = {method: row["curve"][0]["held_out_loss"] for method, row in rows.items()}
    assert starts["low_late_average"] == starts["full"]
    assert starts["autoprog_zero"] == pytest.approx(starts["full"], rel=0.01)


def test_a_study_reports_at_the_rate_that_seed_0_chose(tmp_path: Path) -> None:
    from common import Runs
    from more_parameters import STUDY

    runs = Runs(tmp_path / "runs.jsonl")
    tuned = list(STUDY.jobs(["sd_28m"], runs))
    assert {job.rate for job in tuned if job.seed == 0 and job.method.name == "full"} == set(STUDY.tuned["full"])
    for job in tuned:
        if job.seed == 0:
            loss = abs(job.rate - 5e-4)
            runs.add({**job.key, "curve": [{"held_out_loss": loss}]})
    reported = {job.method.name: job for job in STUDY.jobs(["sd_28m"], runs) if job.seed == 1}
    assert set(reported) == set(STUDY.methods)
    assert reported["full_quarter"].steps == 40
    assert reported["full_quarter"].rate == reported["late_average"].rate == 5e-4
    assert reported["lora_average"].rate == 1e-3


def test_a_model_that_was_not_pretrained_is_asked_for(tmp_path: Path) -> None:
    from cases import CaseError, _sd

    with pytest.raises(CaseError, match="pretrain_larger.py --model unet"):
        _sd("openmoji", 128, tmp_path / "unet")(0, tmp_path, None)


def test_time_shifts_with_the_side_of_the_images() -> None:
    from cases import SIZE, _tiny_flow

    shifts = [_tiny_flow(size).scheduler.config.shift for size in (SIZE, 2 * SIZE)]
    assert shifts == [1.0, 2.0]
