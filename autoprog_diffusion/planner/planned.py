"""A plan of a run: its stages, what it is compared with, and the best ways to train that fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .candidates import Candidate
from .machine import Calibration, Machine
from .models import ModelSource
from .quality import AVERAGED, Quality


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run.

    Attributes:
        stage: Its index.
        start: Its first optimizer step.
        steps: How many it has.
        blocks: How many blocks train.
        trained: How many parameters train.
        flops: Of an optimizer step.
        exact: Whether they are counted on this very stage, rather than added up from its blocks.
        peak: Most bytes of a step.
        split: That, by kind.
        seconds: Of an optimizer step; None where no speed is known.
    """

    stage: int
    start: int
    steps: int
    blocks: int
    trained: int
    flops: int
    exact: bool
    peak: int
    split: dict[str, int]
    seconds: float | None


@dataclass(frozen=True)
class Planned:
    """What a run takes.

    Attributes:
        source: The model.
        parameters: Their number.
        blocks: How many blocks may grow or freeze.
        pixels: Side of the images.
        batch: Images of a forward pass of the default plan.
        steps: Optimizer steps of the run.
        machine: What is planned for; None without a limit.
        calibration: How fast it is, if that is known.
        stages: Of the run.
        others: Full fine-tuning and LoRA, for comparison.
        best: The best ways to train that fit, and their command lines.
        least: What takes least memory, where nothing fits.
        verdict: Whether growth is worth it, in words.
        trained: Name of the stages in the table of qualities.
        quality: What they lose.
    """

    source: ModelSource
    parameters: int
    blocks: int
    pixels: int
    batch: int
    steps: int
    machine: Machine | None
    calibration: Calibration | None
    stages: tuple[StagePlan, ...]
    others: tuple[Candidate, ...]
    best: tuple[tuple[Candidate, str], ...]
    least: Candidate | None
    verdict: str = ""
    trained: str = "freeze"
    quality: Quality = Quality(None, None)

    @property
    def flops(self) -> int:
        """Of the whole run."""
        return sum(stage.flops * stage.steps for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of the whole run; None where no speed is known."""
        if self.calibration is None:
            return None
        return sum((stage.seconds or 0.0) * stage.steps for stage in self.stages)

    @property
    def averaged(self) -> bool:
        """Whether the quality is that of an average of the weights, as the recipes' defaults keep one."""
        return self.trained.startswith(AVERAGED)

    @property
    def share(self) -> float:
        """FLOPs of the run over those of as many steps of full fine-tuning."""
        return self.flops / (self.others[0].cost.flops * self.steps)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "model": {
                "name": self.source.name,
                "class": self.source.cls,
                "parameters": self.parameters,
            },
            "blocks": self.blocks,
            "pixels": self.pixels,
            "batch": self.batch,
            "steps": self.steps,
            "machine": None if self.machine is None else asdict(self.machine),
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "stages": [asdict(stage) for stage in self.stages],
            "flops": self.flops,
            "seconds": self.seconds,
            "share_of_full_flops": self.share,
            "trained": self.trained,
            "averaged": self.averaged,
            "quality": {**asdict(self.quality), "words": str(self.quality)},
            "compared": [as_row(one) for one in self.others],
            "best": [{**as_row(one), "command": command} for one, command in self.best],
            "smallest": None if self.least is None else as_row(self.least),
            "verdict": self.verdict,
        }


def as_row(candidate: Candidate) -> dict[str, Any]:
    """A candidate as plain JSON types."""
    row = asdict(candidate)
    row["stages"] = len(candidate.stages)
    row["quality"] = {
        **row["quality"],
        "words": str(candidate.quality),
    }
    return row
