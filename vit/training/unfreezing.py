"""Progressive unfreezing in the pretraining loop: `GrowthScheduler` with what `loop.Trainer` asks of growth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from autoprog_diffusion.growth import ConfigError, GrowthConfig, GrowthPlan, GrowthScheduler, StageRecord

from ..ema import WeightAverage
from ..resolution import enable_dynamic_resolution


class Unfreezing:
    """Unfreezes a pretrained vision transformer stage by stage (the AutoProg-Zero side of ViTs).

    Args:
        model: The bare pretrained model, before its optimizer over all of its parameters.
        config: How it grows.
        image_size: Side of the images in pixels, of which the configuration's fractions are meant.
        ema_decay: Of the average of the weights.
        accelerator: Of the loop, or None.

    Raises:
        ConfigError: A search is asked to choose resolutions.
        UnitError: The model's blocks cannot be named.
    """

    def __init__(
        self, model: nn.Module, config: GrowthConfig, image_size: int, ema_decay: float, accelerator: Any = None
    ) -> None:
        if config.search != "none" and config.resolutions:
            raise ConfigError(
                f"search={config.search!r} cannot choose among resolutions={config.resolutions} of a vision "
                "transformer: its scores replay calls, whose logits belong to one size. Leave one of them out."
            )
        self.config, self._model, self._size = config, model, image_size
        self._growth, self._accelerator = GrowthScheduler(model, config, accelerator), accelerator
        self._decay = ema_decay

    def prepare(
        self, model: nn.Module, *, num_training_steps: int, held_out: object = None, loss_fn: object = None
    ) -> None:
        """Enter stage 0, and register for checkpointing with the accelerator.

        Args:
            model: What `accelerator.prepare` returned for the model.
            num_training_steps: Optimizer steps of the whole run.
            held_out: For searches that evaluate; this one replays what the loop does.
            loss_fn: The same.

        Raises:
            OrderError: As `GrowthScheduler.prepare`.
            PlanError: The plan does not fit the model or the number of steps.
        """
        self._growth.prepare(model, num_training_steps=num_training_steps)
        self._average = WeightAverage(self._model, self._decay)
        self._disable_resolutions = enable_dynamic_resolution(self._model)
        if self._accelerator is not None:
            self._accelerator.register_for_checkpointing(self)

    def step(self) -> bool:
        """Count one optimizer step; returns whether a new stage was entered. Raises as `GrowthScheduler.step`."""
        self._average.update(everything=self.plan.freezes)
        return self._growth.step()

    def resize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> the same at the current stage's resolution."""
        return self._growth.resize(images)

    def fold(self, model: nn.Module) -> None:
        """Leave a plain model: no hook, no override, everything requires gradient."""
        self._growth.fold(model)
        self._disable_resolutions()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold its averaged weights inside a `with` block."""
        with self._average.swapped_in():
            yield

    @property
    def plan(self) -> GrowthPlan:
        """The plan that is followed."""
        return self._growth.plan

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self._growth.stage

    @property
    def num_stages(self) -> int:
        """Stages of the plan, the warm-up of a search included."""
        return len(self.plan.stages)

    @property
    def depth(self) -> int:
        """Number of blocks that train."""
        return len(self.plan.stages[self.stage].blocks)

    @property
    def resolution(self) -> int:
        """Side of the current stage's images in pixels."""
        resolution = self._growth.resolution
        return round(resolution * self._size) if isinstance(resolution, float) else resolution

    @property
    def searching(self) -> bool:
        """Never: the zero-shot search takes no training steps of its own."""
        return False

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """What the search decided so far; a candidate's depth is the number of blocks it trains."""
        return [
            {**decision, "candidates": [{**row, "depth": len(row["blocks"])} for row in decision["candidates"]]}
            for decision in self._growth.decisions
        ]

    @property
    def history(self) -> list[StageRecord]:
        """The stages entered so far."""
        return self._growth.history

    def state_dict(self) -> dict[str, Any]:
        """The average; the growth scheduler is registered by itself."""
        return {"average": self._average.state_dict(), "updates": self._average.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self._average.load_state_dict(state_dict["average"], state_dict["updates"])
