"""Peak memory of any plan, computed from the profile of a model: a walk over the segments of one step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from autoprog_diffusion.growth.choices import FrozenDtype

from .profile import Profile
from .settings import Plan
from .sizes import STEP_BYTES, UNPACK_BYTES, ParameterSize, largest
from .trace import Segment, Trace
from .tracker import KINDS, Kind


# Of these a larger batch needs more.
WITH_BATCH: tuple[Kind, ...] = ("activations", "other")
HALF = 0.5


@dataclass
class Meter:
    """Bytes by kind that are held, and the most of them so far."""

    held: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    highest: dict[Kind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))

    def add(self, kind: Kind, bytes: float) -> None:
        """Hold more bytes, or fewer."""
        self.held[kind] += bytes

    def add_all(self, bytes: dict[Kind, float]) -> None:
        """Hold more bytes of every kind, or fewer."""
        for kind, amount in bytes.items():
            self.held[kind] = max(
                0.0,
                self.held[kind] + amount,
            )

    def look(self, above: dict[Kind, float] | None = None) -> None:
        """Note a moment, with bytes that are held for this moment only."""
        now: dict[Kind, float] = {kind: self.held[kind] + (above or {}).get(kind, 0.0) for kind in KINDS}
        if sum(now.values()) > sum(self.highest.values()):
            self.highest = now


class StageMeter:
    """The memory of a step of one stage.

    Args:
        profile: Of the model.
        plan: What is trained, and how it is held.
        blocks: Indices of the blocks that train.
        batch: Images.
    """

    def __init__(self, profile: Profile, plan: Plan, blocks: Collection[int], batch: int = 1) -> None:
        self._profile = profile
        self._plan = plan
        self._batch = batch
        self._blocks = sorted(blocks)
        self._frozen_dtype: FrozenDtype | None = plan.growth.get("frozen_dtype")
        self._recomputes = plan.growth.get("checkpointing") == "all"
        self._last = len(profile.sizes) - 1
        first = self._blocks[0] if self._blocks else self._last
        self._trained = {self._last, *(index + 1 for index in self._blocks)}
        if first == 0:
            self._trained.add(0)
        # Units that run without gradient: the inputs are unit 0, block i is unit i + 1.
        self._front = set(range(first + 1)) if first > 0 else set()
        self._meter = Meter()

    @property
    def lora(self) -> bool:
        """Whether adapters train alone."""
        return self._plan.lora is not None

    @property
    def _adapters(self) -> tuple[Trace, list[ParameterSize]]:
        assert self._profile.lora is not None
        return self._profile.lora

    def measure(self) -> dict[Kind, int]:
        """Bytes by kind at the peak of a step."""
        self._start()
        self._forward()
        self._backward()
        self._step()
        # A part that frees what a copy took may free more than this plan had copied.
        return {kind: max(0, round(bytes)) for kind, bytes in self._meter.highest.items()}

    def host(self) -> int:
        """Bytes of exact weights that wait in CPU memory while frozen ones are held small."""
        if self._frozen_dtype is None:
            return 0
        waiting = 0.0
        for unit in range(len(self._profile.sizes)):
            if not self._trains(unit):
                waiting += self._sum(
                    unit,
                    ("host", self._frozen_dtype),
                    self._waiting,
                )
        return round(waiting)

    def _start(self) -> None:
        """What is held before the step."""
        plan = self._plan
        meter = self._meter
        dtype = plan.trained_dtype
        frozen = self._frozen_dtype
        meter.add("weights", self._profile.buffers)
        for unit in range(len(self._profile.sizes)):
            if self._trains(unit):
                meter.add(
                    "weights",
                    self._sum(
                        unit,
                        dtype,
                        lambda size: size.weight_bytes(dtype),
                    ),
                )
            else:
                held = self._sum(
                    unit,
                    ("frozen", frozen),
                    lambda size: size.frozen_bytes(frozen),
                )
                meter.add("weights", held)
        if self.lora:
            meter.add(
                "weights",
                sum(size.weight_bytes(dtype) for size in self._adapters[1]),
            )
        meter.add(
            "optimizer",
            self._total(
                plan.optimizer,
                lambda size: size.state_bytes(plan.optimizer),
            ),
        )
        meter.add(
            "activations",
            self._profile.inputs * self._batch,
        )

    def _forward(self) -> None:
        cached = 0.0
        for segment, _, again in self._segments():
            meter = self._meter
            if not self.lora and segment.unit in self._front:
                # Results of early blocks wait for late ones in a UNet; in a transformer they follow one another.
                output = segment.output * self._batch
                meter.look(
                    {
                        "activations": 2.0 * output,
                        "other": self._unpacked(segment.unit),
                    }
                )
                if self._profile.is_unet:
                    meter.add("activations", output)
                continue
            meter.look(self._scaled(segment, segment.above))
            kept = self._scaled(segment, segment.kept)
            if not again:
                kept.pop("other", None)
                if self._recomputes:
                    # What it frees was kept by a part that now keeps its input only.
                    kept["activations"] = max(0.0, kept["activations"])
                meter.add_all(kept)
                continue
            meter.add(
                "activations",
                segment.output * self._batch,
            )
            if self._trains(segment.unit):
                cached += kept["copies"]
                meter.add("copies", kept["copies"])
            meter.look()
        self._meter.look()
        self._meter.add_all({"copies": -cached})

    def _backward(self) -> None:
        meter = self._meter
        in_backward = self._plan.step_in_backward
        for forward, backward, again in reversed(list(self._segments())):
            if not self.lora and forward.unit in self._front:
                continue
            if again:
                meter.look(self._scaled(forward, forward.above))
                meter.add_all(self._scaled(forward, forward.kept))
            meter.look(self._scaled(backward, backward.above))
            meter.add_all(self._scaled(backward, backward.kept))
            meter.held["other"] = 0.0
            if again:
                meter.add_all({"activations": -float(forward.output * self._batch)})
            if in_backward and self._trains(forward.unit) and backward.kept["gradients"]:
                meter.look({"other": self._stepping([forward.unit])})
                if self._first_part(forward):
                    meter.held["gradients"] = 0.0
            meter.look()

    def _step(self) -> None:
        """The optimizer's step, after the backward pass."""
        meter = self._meter
        if self._plan.step_in_backward:
            return
        meter.held |= {
            "activations": self._profile.inputs * self._batch,
            "copies": 0.0,
        }
        dtype = self._plan.trained_dtype
        meter.held["gradients"] = self._total(
            dtype,
            lambda size: size.weight_bytes(dtype),
        )
        meter.look({"other": self._stepping(sorted(self._trained))})

    def _segments(self) -> Iterator[tuple[Segment, Segment, bool]]:
        """Every segment of the forward and of the backward pass, and whether it is computed again."""
        full = self._profile.full
        live = self._adapters[0] if self.lora else self._profile.live
        for index, segment in enumerate(full.forward):
            trace = live if self.lora or not self._trains(segment.unit) else full
            yield trace.forward[index], trace.backward[index], self._recomputes and segment.part

    def _trains(self, unit: int) -> bool:
        return unit in self._trained and not self.lora

    def _first_part(self, segment: Segment) -> bool:
        """Whether a segment is the first one of its unit, so that all gradients of the unit are there."""
        parts = [other for other in self._profile.full.forward if other.unit == segment.unit and other.part]
        return not parts or segment is parts[0]

    def _scaled(self, segment: Segment, bytes: dict[Kind, int]) -> dict[Kind, float]:
        """Bytes by kind of a segment, of this batch and of the types that the plan holds weights in."""
        found: dict[Kind, float] = {}
        for kind, amount in bytes.items():
            found[kind] = float(amount * self._batch) if kind in WITH_BATCH else float(amount)
        if self._trains(segment.unit):
            if self._plan.trained_dtype == "bfloat16":
                found["copies"] = 0.0
                found["gradients"] *= HALF
        elif self._frozen_dtype is not None:
            found["copies"] = 0.0
            found["other"] += self._unpacked(segment.unit) if bytes is not segment.kept else 0.0
        return found

    def _unpacked(self, unit: int) -> float:
        """Bytes to unpack the largest frozen weight of a unit."""
        dtype = self._frozen_dtype
        if dtype is None:
            return 0.0
        return UNPACK_BYTES[dtype] * self._largest(unit, dtype)

    def _stepping(self, units: Sequence[int]) -> float:
        """Bytes that the optimizer needs while it steps the parameters of some units, or all adapters."""
        wide, narrow = STEP_BYTES[self._plan.optimizer]
        if self._plan.optimizer == "adamw":
            if self.lora:
                return wide * sum(size.numel for size in self._adapters[1])
            return wide * sum(self._sum(unit, "numel", lambda size: size.numel) for unit in units)
        most = max(self._largest(unit, None) for unit in units)
        return (narrow if self._plan.trained_dtype == "bfloat16" else wide) * most

    def _total(self, key: Any, number: Callable[[ParameterSize], float]) -> float:
        """A number summed over all parameters that train."""
        if self.lora:
            return sum(map(number, self._adapters[1]))
        return sum(self._sum(unit, key, number) for unit in self._trained)

    def _sum(self, unit: int, key: Any, number: Callable[[ParameterSize], float]) -> float:
        return self._profile.unit_sum(unit, key, number)

    def _largest(self, unit: int, dtype: FrozenDtype | None) -> int:
        """Number of values of the largest parameter of a unit, of those that can be held in a format."""
        sizes = self._profile.sizes[unit]
        key = (unit, "largest", dtype)
        known = self._profile._sums
        if key not in known:
            known[key] = largest(size for size in sizes if dtype is None or dtype in size.stored)
        return int(known[key])

    def _waiting(self, size: ParameterSize) -> float:
        """Bytes of a parameter's exact value that waits in CPU memory."""
        return size.frozen_bytes(None) if self._frozen_dtype in size.stored else 0.0


def stage_memory(profile: Profile, plan: Plan, blocks: Collection[int], batch: int = 1) -> dict[str, Any]:
    """Peak of a step of one stage.

    Args:
        profile: Of the model.
        plan: What is trained, and how it is held.
        blocks: Indices of the blocks that train.
        batch: Images.

    Returns:
        `peak` and `host` in bytes, and `split` of the peak by kind.
    """
    meter = StageMeter(profile, plan, blocks, batch)
    split = meter.measure()
    return {
        "peak": sum(split.values()),
        "split": split,
        "host": meter.host(),
    }
