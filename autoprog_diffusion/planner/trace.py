"""One training step of a model without memory, followed part by part: bytes, FLOPs, operations and bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.frozen_front import called_modules
from autoprog_diffusion.growth.memory import tensor_bytes
from autoprog_diffusion.growth.recomputation import called_module
from autoprog_diffusion.growth.tape import Tape
from autoprog_diffusion.growth.units import Layout, unit_of_modules
from autoprog_diffusion.search.recorded_calls import output_tensor, tensors_in

from .step_tracker import StepTracker
from .tracker import KINDS, Kind
from .work import Work


@dataclass
class Segment:
    """A part of a pass: that of a block that is computed again as a whole, or what runs between two of them.

    Attributes:
        unit: Index of the unit it belongs to.
        part: Whether it may be computed again.
        kept: Bytes by kind that it leaves when it ends; negative where it frees more.
        above: Bytes by kind above those at its beginning, at its peak.
        output: Bytes of its result.
        work: What it costs.
    """

    unit: int
    part: bool
    kept: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    above: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    output: int = 0
    work: Work = field(default_factory=Work)


@dataclass
class Trace:
    """A training step, by its segments in the order of the forward pass.

    Attributes:
        forward: Of the forward pass.
        backward: Of the backward pass; the window of a segment begins when the gradient of its result is there.
        start: Bytes by kind that are held before the step.
    """

    forward: list[Segment]
    backward: list[Segment]
    start: dict[Kind, int]

    @property
    def work(self) -> Work:
        """What both passes cost."""
        total = Work()
        for segment in (*self.forward, *self.backward):
            total += segment.work
        return total


class Tracer:
    """Follows one step of a model; it is what the model calls in place of its blocks' parts.

    Args:
        tracker: Is active.
        unit_of: Module -> index of its unit.
        last: Index of the outputs' unit.
    """

    def __init__(self, tracker: StepTracker, unit_of: dict[Any, int], last: int) -> None:
        self.tracker = tracker
        self._unit_of = unit_of
        self._last = last
        self._inside = False
        self.forward: list[Segment] = []
        self.backward: list[Segment] = []
        self._before: dict[Kind, int] = {}
        self._work = Work()
        self._now = 0  # segment whose window of the backward pass is open

    def begin(self) -> None:
        """The forward pass begins with what runs before the first part."""
        self._open(Segment(0, part=False))

    def run(self, find: Callable[[Any], Any], call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a part.

        Args:
            find: Gives the module of a call.
            call: The part.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        if self._inside:
            return call(*args, **kwargs)
        unit = self._unit_of.get(
            find(call),
            self._last,
        )
        self._close(self.forward[-1])
        self._watch(
            args,
            len(self.forward) - 1,
        )
        self._open(Segment(unit, part=True))
        self._inside = True
        try:
            result = call(*args, **kwargs)
        finally:
            self._inside = False
        segment = self.forward[-1]
        self._close(segment)
        segment.output = sum(map(tensor_bytes, tensors_in(result)))
        self._watch(
            result,
            len(self.forward) - 1,
        )
        self._open(Segment(unit, part=False))
        return result

    def turn(self) -> None:
        """The forward pass has ended, and the backward pass begins with the last segment."""
        self._close(self.forward[-1])
        self.forward[-1].unit = self._last
        self.backward = [Segment(segment.unit, segment.part) for segment in self.forward]
        self._now = len(self.backward) - 1
        self._mark()

    def end(self) -> None:
        """The backward pass has ended."""
        self._close(self.backward[self._now])

    def _watch(self, value: Any, index: int) -> None:
        """When the gradient of a tensor of a segment's result is complete, its window of the backward pass begins."""
        for tensor in tensors_in(value):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._enter_backward(index))

    def _enter_backward(self, index: int) -> None:
        if index >= self._now:
            return
        self._close(self.backward[self._now])
        self._now = index
        self._mark()

    def _open(self, segment: Segment) -> None:
        self.forward.append(segment)
        self._mark()

    def _mark(self) -> None:
        tracker = self.tracker
        tracker.reset_high()
        self._before = dict(tracker.held)
        self._work = tracker.work.copy()

    def _close(self, segment: Segment) -> None:
        """Note what has changed since the last mark."""
        tracker = self.tracker
        before = self._before
        segment.kept = {kind: tracker.held[kind] - before[kind] for kind in KINDS}
        segment.above = {kind: tracker.highest[kind] - before[kind] for kind in KINDS}
        segment.work = tracker.work - self._work


@dataclass(frozen=True)
class Traced:
    """A model whose steps are followed.

    Attributes:
        model: The bare model, on a device without memory.
        layout: Its units.
        route: Lets the model call a function in place of its blocks' parts; None where it has no such way.
        device: Type of the device.
        autocast: Whether the forward pass runs under bfloat16 autocast.
    """

    model: Any
    layout: Layout
    route: Callable[..., Callable[[], None]] | None
    device: str
    autocast: bool = True

    def step(self, inputs: dict[str, Any], tape: Tape | None = None, beside: Sequence[Tensor] = ()) -> Trace:
        """Follow one forward and backward pass of what requires gradient now.

        Args:
            inputs: Keyword arguments of the forward pass.
            tape: Keeps the operations of the forward pass.
            beside: Parameters outside of the model that always train.
        """
        model = self.model
        last = len(self.layout.units) - 1
        with StepTracker(self.device) as tracker:
            tracker.label(
                "weights",
                [*model.parameters(), *model.buffers()],
            )
            tracker.label("activations", tensors_in(inputs))
            start = dict(tracker.held)
            tracer = Tracer(tracker, unit_of_modules(model, self.layout), last)
            trained = [each for each in model.parameters() if each.requires_grad]
            hooks = [each.register_hook(lambda gradient: tracker.label("gradients", [gradient])) for each in trained]
            with self._parts_called_by(tracer.run):
                tracer.begin()
                with tracker.during("activations"), self._taped(tape, tracker, beside):
                    loss = self._loss(inputs)
                tracer.turn()
                loss.backward()
            tracker.label(
                "gradients",
                [each.grad for each in trained],
            )
            tracer.end()
            for hook in hooks:
                hook.remove()
            model.zero_grad(set_to_none=True)
        return Trace(tracer.forward, tracer.backward, start)

    def record(self, inputs: dict[str, Any], tape: Tape, beside: Sequence[Tensor] = ()) -> None:
        """Follow a forward pass alone; arguments as `step`."""
        with StepTracker(self.device) as tracker:
            tracker.label("weights", [*self.model.parameters(), *self.model.buffers()])
            with self._taped(tape, tracker, beside):
                self._loss(inputs)

    @contextmanager
    def _taped(self, tape: Tape | None, tracker: StepTracker, beside: Sequence[Tensor]) -> Iterator[None]:
        """Inside a `with` block, a tape keeps the operations; at its end, what the loss was computed from."""
        if tape is None:
            yield
            return
        tracker.label("weights", beside)
        tape.parameters = {name: tracker.storage(each) for name, each in self.model.named_parameters()}
        tape.always = {tracker.storage(each) for each in beside}
        tracker.tape = tape
        with tape.following(self.model, self.layout):
            yield
        tracker.tape = None
        tape.end()

    def _loss(self, inputs: dict[str, Any]) -> Tensor:
        """The mean square of the model's output, ()."""
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext():
            output = output_tensor(self.model(**inputs, return_dict=False))
        return output.float().square().mean()

    @contextmanager
    def _parts_called_by(self, run: Callable[..., Any]) -> Iterator[None]:
        """Inside a `with` block, the model calls `run(find, part, *args)` in place of its parts."""
        if self.route is not None:
            restore = self.route(
                self.model,
                partial(run, called_module),
            )
            try:
                yield
            finally:
                restore()
            return
        modules = [module for unit in self.layout.blocks for module in called_modules(self.model, unit.modules)]
        for module in modules:
            vars(module)["forward"] = partial(
                run,
                partial(_given, module),
                module.forward,
            )
        try:
            yield
        finally:
            for module in modules:
                del vars(module)["forward"]


def _given(module: nn.Module, call: Any) -> nn.Module:
    """The module, whatever is called."""
    return module
