"""Forward passes of an optimizer step, where stages say how many: the accelerator of the loop is told."""

from __future__ import annotations

from typing import Any

from .plan import GrowthPlan, Stage


class StageAccumulation:
    """Sets an accelerator's `gradient_accumulation_steps` stage by stage; stages without a number get the loop's own.

    Args:
        accelerator: Of the loop; None for a plain loop, which reads `growth.accumulation` itself.

    Attributes:
        own: Forward passes of an optimizer step of the loop, where no stage says another number.
        most: The largest number of forward passes of any stage.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.own = 1
        self._sets = False
        self.most = 1

    def prepare(self, plan: GrowthPlan) -> None:
        """Look whether any stage says something; else the accelerator is left alone.

        Args:
            plan: Of the run.
        """
        self.own = getattr(self._accelerator, "gradient_accumulation_steps", 1)
        self._sets = self._accelerator is not None and any(stage.accumulation for stage in plan.stages)
        self.most = max(stage.passes(self.own) for stage in plan.stages)

    def enter(self, stage: Stage) -> None:
        """Tell the accelerator, between two optimizer steps.

        Args:
            stage: That begins.
        """
        if self._sets:
            self._accelerator.gradient_accumulation_steps = stage.passes(self.own)
            # It counts passes: those of the stage before would end the first step of this one early.
            self._accelerator.step = 0
