"""Time left of a run whose stages cost differently: exact FLOPs of every stage, scaled by measured step times."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.growth.tape import Tape
from autoprog_diffusion.growth.tape_recorder import PLAIN, Recorder
from autoprog_diffusion.growth.units import Layout

from .measure import counted_flops
from .metrics import Metrics
from .prediction import OURS, is_ours, note_prediction
from .stage_times import area, key_of, measured, seconds_left, stage_seconds, warm_up


LATEST = 32  # steps of a stage whose times count; a machine may slow down


class TimeLeft:
    """The time that a run still needs, told at every step.

    FLOPs of a step of every stage, the stages to come included, are counted from one forward pass: freezing changes
    none (see `growth.tape`). Where an operation is not known, or a block is still to be added, they are those
    of the latest stage that was counted.

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
        ran = tape.ran
        for stage in stages:
            # Another stride gives another number of tokens, and blocks that did not run are not on the tape.
            if stage.stride == now.stride and ran.issuperset(stage.blocks):
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
