"""Charts, the picture of the blocks and numbers in words, against slow and literal twins."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from autoprog_diffusion.growth import GrowthPlan, Stage
from autoprog_diffusion.reporting.blocks import describe_blocks, draw_blocks, stage_ends
from autoprog_diffusion.reporting.charts import Band, Chart, Series, draw
from autoprog_diffusion.reporting.run_folder import Run, read_run
from autoprog_diffusion.reporting.scales import HEIGHT, WIDTH, Axis, axis_of, linear_ticks, smooth, thinned, tick_label
from autoprog_diffusion.reporting.words import duration, loss, percent, short, size

from .made import Made, make_run


PLANS = {
    "freeze": (Stage(0, (0, 1, 2, 3)), Stage(3, (2, 3)), Stage(7, (3,))),
    "unfreeze": (Stage(0, (3,)), Stage(5, (0, 1, 2, 3))),
    "interleaved": (Stage(0, (0, 2)), Stage(1, (0, 1, 2, 3))),
    "window": (Stage(0, (0, 1)), Stage(5, (2, 3)), Stage(9, (0,))),
    "head alone": (Stage(0, ()), Stage(2, (0,))),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "run", Made(steps=12, blocks=4, stages=2)))


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


@pytest.mark.parametrize("name", PLANS)
def test_a_cell_is_filled_exactly_where_the_plan_trains_the_block(run: Run, name: str) -> None:
    plan = GrowthPlan(4, 12, PLANS[name])
    told = Run(**{**vars(run), "plan": plan, "blocks": ("a", "b", "c", "d")})
    markup = draw_blocks(told)
    assert markup is not None
    cells = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"[^>]*><title>(\w) ', markup)
    assert len(cells) == 4 * len(plan.stages)
    found = {}
    for kind, x, y, width, block in cells:
        row = "abcd".index(block)
        assert row == round(float(y) / 10)
        for step in range(12):
            # The middle of the step lies in the cell.
            if float(x) <= WIDTH * (step + 0.5) / 12 <= float(x) + float(width) + 2:
                assert (row, step) not in found
                found[row, step] = kind == "trains"
    expected = {(row, step): row in plan.stages[plan.stage_at(step)].blocks for row in range(4) for step in range(12)}
    assert found == expected
    assert describe_blocks(told, plan).count("Stage ") == len(plan.stages)
    assert sum(end - start for start, end in stage_ends(plan)) == 12


def test_points_lie_where_their_values_are() -> None:
    draws = random.Random(0)
    points = [(float(x), draws.uniform(-3, 5)) for x in range(30)]
    markup = draw(Chart("t", "x", "y", [Series("s", points)]))
    (path,) = re.findall(r'class="line" d="M([^"]+)"', markup)
    drawn = numbers(path.replace("L", " L"))
    axis = axis_of([y for _, y in points])
    assert len(drawn) == 30
    for (x, y), (left, top) in zip(points, drawn):
        assert left == pytest.approx(WIDTH * x / 29, abs=0.01)
        assert top == pytest.approx(HEIGHT * (axis.high - y) / (axis.high - axis.low), abs=0.01)


def test_a_value_that_cannot_be_drawn_breaks_the_line() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, math.inf), (4.0, 1e200), (5.0, 1.5), (6.0, 1.0)]
    markup = draw(Chart("t", "x", "y", [Series("s", points, dots=True)]))
    (path,) = re.findall(r'class="line" d="([^"]+)"', markup)
    assert path.count("M") == 2
    assert markup.count('class="dot"') == 4
    assert "nothing was measured" in draw(Chart("t", "x", "y", [Series("s", points[2:5])]))


def test_bands_marks_and_noise_are_drawn_where_they_belong() -> None:
    chart = Chart(
        "t",
        "x",
        "y",
        [Series("a", [(0.0, 1.0), (10.0, 2.0)]), Series("b", [(0.0, 1.5)], dots=True)],
        bands=[Band(0, 5, "first"), Band(5, 20, "second")],
        marks=[(10.0, "best")],
        margin=[(0.0, 0.5, 1.5), (10.0, 1.0, 3.0)],
    )
    markup = draw(chart)
    rects = re.findall(r'<rect class="band[^"]*" x="([\d.]+)" y="0" width="([\d.]+)"', markup)
    assert [tuple(map(float, found)) for found in rects] == [(0, 250), (250, 750)]
    assert '<path class="mark" d="M500 0V400"><title>best</title></path>' in markup
    assert len(re.findall('class="margin"', markup)) == 1
    assert 'style="left:25.00%;width:75.00%">second</span>' in markup
    assert 'aria-label="t, y over x. a: 1 at 0, 2 at 10, lowest 1, highest 2. b: 1.5' in markup


def test_every_axis_holds_its_values_and_has_ticks_inside() -> None:
    draws = random.Random(1)
    for _ in range(300):
        scale = 10 ** draws.uniform(-12, 12)
        values = [draws.uniform(-1, 1) * scale for _ in range(draws.randint(1, 5))]
        if draws.random() < 0.5:
            values = [abs(value) for value in values]
        for log in (False, True):
            axis = axis_of(values, log=log, from_zero=draws.random() < 0.5)
            places = [axis.place(value) for value in values]
            assert axis.low <= min(values) <= max(values) <= axis.high
            assert all(0 <= place <= 1 for place in places)
            order = sorted(range(len(values)), key=lambda index: values[index])
            assert [places[index] for index in order] == sorted(places)
            ticks = axis.ticks()
            assert 2 <= len(ticks) <= 12
            assert all(axis.low - 1e-9 * scale <= tick <= axis.high + 1e-9 * scale for tick in ticks)
            assert len({tick_label(tick) for tick in ticks}) == len(ticks)


AXES_OF_ODD = [[], [0.0], [5.0], [-2.0, -2.0], [1e30, 1e30], [1e-300, 1e-300], [1e99, -1e99]]


def test_axes_of_odd_values_are_axes() -> None:
    for values in AXES_OF_ODD:
        for log in (False, True):
            axis = axis_of(values, log=log)
            assert axis.low < axis.high
            assert axis.ticks()
            assert all(0 <= axis.place(value) <= 1 for value in values)
        assert Axis(1e300, 1e300).place(1e300) == 0


def test_ticks_are_round() -> None:
    assert linear_ticks(0, 640) == [0, 200, 400, 600]
    assert linear_ticks(0.0021, 0.0098) == pytest.approx([0.004, 0.006, 0.008])
    assert axis_of([0.01, 10.0], log=True).ticks() == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert axis_of([1e-6, 1.0], log=True).ticks() == pytest.approx([10.0**power for power in range(-6, 1)])


def test_thinned_points_are_means_of_parts_that_hold_every_value_once() -> None:
    for length in (1, 2, 399, 400, 401, 1000, 4321):
        draws = random.Random(length)
        values = [draws.random() for _ in range(length)]
        points = thinned(values, most=400)
        assert len(points) == min(length, 400)
        sizes = []
        start = 0
        for place, mean in points:
            # The middle of steps start + 1 to stop.
            stop = round(2 * place - start - 1)
            assert mean == pytest.approx(sum(values[start:stop]) / (stop - start))
            sizes.append(stop - start)
            start = stop
        assert start == length
        assert max(sizes) - min(sizes) <= 1


def test_the_moving_average_is_that_of_its_definition() -> None:
    draws = random.Random(2)
    values = [draws.random() for _ in range(50)]
    for index, found in enumerate(smooth(values, weight=0.8)):
        weights = [0.8 ** (index - past) for past in range(index + 1)]
        expected = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        assert found == pytest.approx(expected)
    assert smooth([math.nan, 1.0, math.inf, 1.0], 0.5)[1:] == [1.0, 1.0, 1.0]


def test_numbers_in_words() -> None:
    times = {0.0: "0 ms", 1: "1.0 s", 59.99: "60.0 s", 60: "1 min", 3599.6: "1 h", 7260: "2 h 1 min"}
    assert {value: duration(value) for value in times} == times
    assert [duration(value) for value in (None, math.nan, math.inf)] == ["\u2013"] * 3
    assert size(3 * 2**29) == "1.5 GiB"
    assert short(-1500.0) == "-1.5 k"
    assert percent(0.001) == "under 1\u00a0%"
    assert percent(0) == "0\u00a0%"
    assert loss(0.123456) == "0.1235"


def test_the_report_reads_nothing_but_the_folder(tmp_path: Path) -> None:
    """A run copied elsewhere, with the rest of the machine out of reach, gives the same page."""
    folder = make_run(tmp_path / "run")
    run = read_run(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    again = read_run(moved)
    assert (again.plan, again.stages, again.rows) == (run.plan, run.stages, run.rows)
