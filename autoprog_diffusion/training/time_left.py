"""Time left of a run whose stages cost differently: exact FLOPs of every stage, scaled by measured step times."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import median

from torch import Tensor, nn

from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth.plan import GrowthPlan, Stage
from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.growth.tape import Tape
from autoprog_diffusion.growth.tape_recorder import PLAIN, Recorder
from autoprog_diffusion.growth.units import Layout

from .measure import counted_flops
from .metrics import Metrics


OURS = "the first three steps of the run, and the FLOPs of every stage"
LATEST = 32  # steps of a stage whose times count; a machine may slow down


class TimeLeft:
    """The time that a run still needs, told at every step.

    FLOPs of a step of every stage, the stages to come included, are counted from one forward pass: freezing changes
    none (see `growth.tape`). Where an operation is not known they are those of the latest stage that was counted.

    Args:
        metrics: Of the run; it keeps them, so that a resumed run has them.
        growth: The growth object of the run.
        accumulation: Forward passes per optimizer step.
        file: Where to write what is predicted of every stage, for the report; None writes nothing.

    Attributes:
        work: Step and number of its first passes (None for all) -> their work over that of as many mean ones. Times
            and FLOPs are those of mean steps, by this number.
    """

    def __init__(self, metrics: Metrics, growth: Growth, accumulation: int, file: Path | None = None) -> None:
        self._metrics = metrics
        self._growth = growth
        self._accumulation = accumulation
        self._file = file
        self.work: Callable[[int, int | None], float] = lambda step, passes: 1.0
        self._seen = 0  # steps that the next two know of
        self._times: dict[int, deque[float]] = {}
        self._flops: dict[int, float] = {}
        self._firsts: dict[int, float] = {}  # seconds of the first step of a stage

    def tell(self) -> float | None:
        """Seconds of the steps to come; kept for the summary when a stage has begun. None before the first step."""
        self._look()
        if not self._flops:
            return None
        plan = self._growth.plan
        done = len(self._metrics)
        times = measured(self._times)
        left = seconds_left(
            done,
            plan,
            times,
            self.of_plan(),
        )
        if left is not None:
            coming = [stage for stage in plan.stages if stage.start >= done]
            left += len(coming) * warm_up(self._firsts, times)
        if note_prediction(self._metrics, left) and len(self._metrics.predictions) == 1:
            self._write(plan, times)
        return left

    def _write(self, plan: GrowthPlan, times: Mapping[int, float]) -> None:
        """Write what is predicted of every stage, unless the user has put a prediction there."""
        if self._file is None or not is_ours(self._file):
            return
        costs = self.of_plan()
        stages = []
        for index, stage in enumerate(plan.stages):
            row = {
                "stage": index,
                "blocks": len(stage.blocks),
                "flops": costs[index],
                "seconds": stage_seconds(
                    index,
                    times,
                    costs,
                ),
                "peak": None,
            }
            stages.append(row)
        values = {
            "source": OURS,
            "stages": stages,
        }
        text = json.dumps(values, indent=1)
        write_text_atomically(self._file, f"{text}\n")

    def _look(self) -> None:
        """Take in the steps that were done since the last look."""
        rows = self._metrics.rows
        for step in range(self._seen, len(self._metrics)):
            stage = int(rows["stage"][step])
            self._flops[stage] = rows["flops"][step]
            if not rows["searching"][step]:
                seconds = rows["seconds"][step] / self.work(step, None)
                self._firsts.setdefault(stage, seconds)
                self._times.setdefault(stage, deque(maxlen=LATEST)).append(seconds)
        self._seen = len(self._metrics)

    @property
    def wanted(self) -> bool:
        """Whether stages of the plan are not known, and could be."""
        stages = self._growth.plan.stages
        if not isinstance(getattr(self._growth, "layout", None), Layout):
            return False
        # Of sharded parameters this process has parts only.
        for parameter in self._growth.parameters():
            if type(parameter) not in PLAIN:
                return False
        for stage in stages:
            if stage.stride is None and key_of(stage) not in self._metrics.costs:
                return True
        return False

    def counted(self, model: nn.Module, loss: Callable[[], Tensor]) -> int:
        """FLOPs of a mean pass and its backward pass, by PyTorch's counter; those of stages to come are kept as well.

        Args:
            model: The bare model.
            loss: Runs the forward pass.
        """
        work = self.work(len(self._metrics), 1)
        if not self.wanted:
            return round(counted_flops(lambda: loss().backward()) / work)
        tape = Tape()
        own = set(model.parameters())
        beside = [each for each in self._growth.parameters() if each not in own]

        def run() -> None:
            with Recorder(tape, model, self._layout, beside):
                found = loss()
            found.backward()

        flops = counted_flops(run)
        tape.end()
        self.note(tape, flops, work)
        return round(flops / work)

    def note(self, tape: Tape, counted: int, work: float = 1.0) -> None:
        """Keep the FLOPs of every stage, if those of the one that trains now are what PyTorch's counter says.

        Args:
            tape: Of a forward pass.
            counted: FLOPs of that pass and its backward pass.
            work: Of that pass, over that of a mean one.
        """
        stages = self._growth.plan.stages
        now = stages[self._growth.stage]
        if tape.stage_flops(self._layout, now.blocks) != counted:
            return
        for stage in stages:
            # Another stride gives another number of tokens.
            if stage.stride == now.stride:
                passes = stage.passes(self._accumulation)
                flops = tape.stage_flops(self._layout, stage.blocks) * passes / work
                if stage.resolution == now.resolution:
                    self._metrics.exact[key_of(stage)] = round(flops)
                self._metrics.costs[key_of(stage)] = flops * area(stage, now)

    @property
    def exact(self) -> int | None:
        """FLOPs of a step of the stage that trains now, where they are known without counting again.

        A pass that is counted takes as long as several steps.
        """
        growth = self._growth
        if growth.searching or getattr(growth.history[-1], "recomputed", ()):
            return None
        return self._metrics.exact.get(key_of(growth.plan.stages[growth.stage]))

    def of_plan(self) -> list[float]:
        """FLOPs of a step of every stage of the plan: counted, from the tape, or those of the latest stage."""
        self._look()
        counted = self._flops
        latest = max(counted)
        stages = self._growth.plan.stages
        found = []
        for index, stage in enumerate(stages):
            guess = counted[latest] * area(stage, stages[latest])
            flops = self._metrics.costs.get(
                key_of(stage),
                guess,
            )
            found.append(counted.get(index, flops))
        return found

    @property
    def _layout(self) -> Layout:
        return getattr(self._growth, "layout")  # noqa: B009 - of those growth objects that have units


def key_of(stage: Stage) -> str:
    """What a stage costs depends on: which blocks train, the size of the images, and how many passes."""
    passes = "" if stage.accumulation is None else f", {stage.accumulation} passes"
    return f"{','.join(map(str, stage.blocks))} at {stage.resolution}{passes}"


def area(stage: Stage, other: Stage) -> float:
    """Pixels of a stage's images over those of another one's; 1 where they cannot be compared."""
    if type(stage.resolution) is not type(other.resolution):
        return 1.0
    return (stage.resolution / other.resolution) ** 2


def seconds_left(done: int, plan: GrowthPlan, measured: Mapping[int, float], costs: Sequence[float]) -> float | None:
    """Seconds of the steps to come.

    Args:
        done: Optimizer steps done.
        plan: The stages.
        measured: Stage -> seconds of a step.
        costs: FLOPs of a step of every stage, or anything in proportion to them.

    Returns:
        None where nothing is measured.
    """
    if not measured:
        return None
    left = 0.0
    end = plan.num_training_steps
    for index in reversed(range(len(plan.stages))):
        start = max(plan.stages[index].start, done)
        steps = max(0, end - start)
        left += steps * stage_seconds(
            index,
            measured,
            costs,
        )
        end = plan.stages[index].start
    return left


def measured(times: Mapping[int, Collection[float]]) -> dict[int, float]:
    """Stage -> median seconds of a step.

    The first step of a stage warms up, and counts only where no stage has another one.

    Args:
        times: Stage -> seconds of its latest steps.
    """
    warm: dict[int, Collection[float]] = {}
    for stage, seconds in times.items():
        _, *others = seconds
        if others:
            warm[stage] = others
    chosen = warm or times
    return {stage: median(seconds) for stage, seconds in chosen.items()}


def warm_up(firsts: Mapping[int, float], times: Mapping[int, float]) -> float:
    """Seconds that the first step of a stage takes longer, by the stages so far; that of a run has reasons of its own.

    Args:
        firsts: Stage -> seconds of its first step.
        times: Stage -> seconds of another one.
    """
    longer = []
    for stage, first in firsts.items():
        if stage in times:
            longer.append(first - times[stage])
    _, *others = longer or [0.0]
    if not others:
        return 0.0
    return max(0.0, median(others))


def stage_seconds(index: int, measured: Mapping[int, float], costs: Sequence[float]) -> float:
    """Seconds of a step of a stage: measured, or by the FLOPs from what was measured.

    With one stage measured, time is in proportion to the FLOPs. From two on, a part of the step does not depend on
    them: the line through the cheapest and the most expensive one, if it rises and that part is not negative.

    Args:
        index: Of the stage.
        measured: Stage -> seconds of a step.
        costs: FLOPs of a step of every stage.
    """
    if index in measured:
        return measured[index]
    points = []
    for stage, seconds in measured.items():
        points.append((costs[stage], seconds))
    flops, seconds = points[-1]
    proportional = seconds
    if flops:
        proportional = seconds * costs[index] / flops
    cheap, least = min(points)
    expensive, most = max(points)
    if expensive <= cheap or most <= least:
        return proportional
    slope = (most - least) / (expensive - cheap)
    constant = least - slope * cheap
    if constant <= 0:
        return proportional
    return constant + slope * costs[index]


def note_prediction(metrics: Metrics, left: float | None) -> bool:
    """Keep what was predicted when a stage had its third step, for the summary; returns whether that was now.

    Args:
        metrics: Of the steps done.
        left: Seconds that were predicted for the rest.
    """
    stages = metrics.rows["stage"]
    if left is None or sum(stage == stages[-1] for stage in stages[-4:]) != 3:
        return False
    metrics.predictions.append({"step": float(len(stages)), "seconds": left})
    return True


def is_ours(file: Path) -> bool:
    """Whether a file of predictions is not there, or was written by a run."""
    if not file.exists():
        return True
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("source") == OURS
    except (ValueError, AttributeError):
        return False


def prediction_sentence(metrics: Metrics) -> str | None:
    """How far the time left was from what the rest of the run took, from the second stage on; None without one."""
    seconds = metrics.rows["seconds"]
    errors = []
    for each in metrics.predictions[1:]:
        step = int(each["step"])
        took = sum(seconds[step:])
        if took > 0:
            ratio = each["seconds"] / took
            errors.append(abs(ratio - 1))
    if not errors:
        return None
    return f"the time left was told within {max(errors):.0%} of what the rest took, from the second stage on."
