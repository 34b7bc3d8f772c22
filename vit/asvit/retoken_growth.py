"""`RetokenGrowth`: the object a pretraining loop holds when tokens, not blocks, grow. The contract of `ViTGrowth`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from autoprog_diffusion.growth.backends.ranks import check_ranks_equal, unwrap
from autoprog_diffusion.growth.config import check_increasing_resolutions
from autoprog_diffusion.growth.errors import ConfigError, OrderError, PlanError, StateError
from autoprog_diffusion.growth.plan import GrowthPlan, Stage
from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.growth.resize import resize_images
from autoprog_diffusion.growth.units import count_trainable

from ..ema import WeightAverage
from ..resolution import enable_dynamic_resolution
from ..retokenize import Retokenizer, dilation_for


STATE_VERSION = 1
PUBLISHED_BOUNDARIES = (80 / 300, 132 / 300)  # read off the As-ViT paper's figure

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetokenConfig:
    """When tokens become smaller (As-ViT, progressive re-tokenization).

    Attributes:
        strides: Pixels from one token to the next in every stage, falling; None is the model's own.
        boundaries: First step of every stage but the first, as fractions of the run.
        resolutions: Side of the images in every stage, in pixels, never falling; None is the data's in all.
        ema_decay: Of the moving average of the weights.
    """

    strides: tuple[int | None, ...] = (16, 8, None)
    boundaries: tuple[float, ...] = PUBLISHED_BOUNDARIES
    resolutions: tuple[int, ...] | None = None
    ema_decay: float = 0.998

    def __post_init__(self) -> None:
        if len(self.boundaries) != len(self.strides) - 1 or not all(0 < bound < 1 for bound in self.boundaries):
            raise ConfigError(
                f"boundaries={self.boundaries} do not fit strides={self.strides}: give a fraction in (0, 1) for the "
                f"start of every stage but the first, {len(self.strides) - 1} of them."
            )
        if self.resolutions is not None and len(self.resolutions) != len(self.strides):
            raise ConfigError(f"resolutions={self.resolutions} do not fit strides={self.strides}: one for each stage.")
        if self.resolutions is not None:
            check_increasing_resolutions(self.resolutions, ConfigError)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    def plan(self, num_blocks: int, num_training_steps: int) -> GrowthPlan:
        """The stages of a run, in the same plan as depth and resolution growth.

        Raises:
            PlanError: The run is too short for its stages, or the strides rise.
        """
        starts = [0, *(int(bound * num_training_steps) for bound in self.boundaries)]
        sides: tuple[float | int, ...] = self.resolutions or (1.0,) * len(starts)
        blocks = tuple(range(num_blocks))
        stages = tuple(Stage(start, blocks, side, stride) for start, side, stride in zip(starts, sides, self.strides))
        return GrowthPlan(num_blocks, num_training_steps, stages)


@dataclass(frozen=True)
class TokenRecord:
    """What happened when a stage was entered.

    Attributes:
        stage: Its index.
        step: Optimizer step (counted from 0) it was entered at.
        stride: Pixels from one token to the next.
        dilation: Pixels between the weights of the first kernel.
        resolution: Side of the images in pixels.
    """

    stage: int
    step: int
    stride: int
    dilation: int
    resolution: int

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


class RetokenGrowth:
    """Lets the tokens of a model become smaller, stage by stage, inside a training loop.

    Args:
        model: The bare model; any vision transformer with a patch projection.
        config: Strides, and when.
        image_size: Side of the data's images, in pixels.
        num_blocks: Blocks of the model, all of which train in every stage.
        accelerator: Of the loop, or None.
        projection: Name of the patch projection, where `find_projection` does not find it.

    Raises:
        RetokenError: The projection cannot be found, or cannot have one of the strides.
        PlanError: A stage's stride does not divide its images.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RetokenConfig,
        image_size: int,
        num_blocks: int,
        accelerator: Any = None,
        projection: str | None = None,
    ) -> None:
        self.config = config
        self.decisions: list[dict[str, Any]] = []
        self._model, self._accelerator = model, accelerator
        self._image_size, self.depth = image_size, num_blocks
        self._tokens = Retokenizer(model, projection)
        self._plan: GrowthPlan | None = None
        self._step, self._running = 0, False
        self._undo: Callable[[], object] = lambda: None
        self.history: list[TokenRecord] = []
        for stride, side in zip(config.strides, config.resolutions or (image_size,) * len(config.strides)):
            stride = self._tokens.check(stride)
            if side % stride or not 0 < side <= image_size:
                raise PlanError(
                    f"a stride of {stride} pixels does not divide images of {side} pixels, or they are larger than "
                    f"the data's, {image_size}: give strides and resolutions that fit each other."
                )
        if self._tokens.check(config.strides[-1]) != self._tokens.native:
            raise PlanError(f"strides={config.strides} must end with the model's own, {self._tokens.native} or None.")

    def prepare(self, model: nn.Module, *, num_training_steps: int, held_out: Any = None, loss_fn: Any = None) -> None:
        """Enter the first stage, and register for checkpointing with the accelerator.

        Args:
            model: What `accelerator.prepare` returned.
            num_training_steps: Optimizer steps of the whole run.
            held_out: For searches, not used: the schedule is fixed.
            loss_fn: The same.

        Raises:
            OrderError: Called twice, or with another model.
            PlanError: The run is too short for its stages.
        """
        if self._plan is not None or unwrap(model) is not self._model:
            raise OrderError("prepare runs once, with the model this RetokenGrowth was built for.")
        self._plan = self.config.plan(self.depth, num_training_steps)
        self._average = WeightAverage(self._model, self.config.ema_decay)
        if self.config.resolutions is not None:
            self._undo = enable_dynamic_resolution(self._model)
        self._running = True
        self._enter()
        if self._accelerator is not None:
            self._accelerator.register_for_checkpointing(self)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's parameters, from which the optimizer is built."""
        return self._model.parameters()

    def step(self) -> bool:
        """Count one optimizer step; returns whether a new stage was entered.

        Raises:
            OrderError: Not prepared, or folded.
            SyncError: A new stage begins and the ranks' weights differ.
        """
        before = self.stage
        if not self._running:
            raise OrderError("step was called after fold: construct a new RetokenGrowth for a new run.")
        self._average.update()
        self._step += 1
        if self.stage == before:
            return False
        self._enter()
        return True

    def resize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> the same at the current resolution, by area averaging."""
        return resize_images(images, self.resolution, self._tokens.stride)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold its averaged weights inside a `with` block."""
        with self._average.swapped_in():
            yield

    def fold(self, model: nn.Module) -> None:
        """Leave the vanilla model: its own stride, no hook.

        Raises:
            OrderError: Another model, or called twice or before `prepare`.
        """
        if unwrap(model) is not self._model or not self._running:
            raise OrderError("fold runs once, after prepare and training, with the model that was trained.")
        self._tokens.restore()
        self._undo()
        self._running = False

    @property
    def plan(self) -> GrowthPlan:
        """The plan that is followed.

        Raises:
            OrderError: `prepare` has not been called.
        """
        if self._plan is None:
            raise OrderError("call growth.prepare(model, num_training_steps=...) first.")
        return self._plan

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self.plan.stage_at(self._step)

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.config.strides)

    @property
    def trainable_fraction(self) -> float:
        """Share of the model's parameters that train now, in [0, 1]."""
        trainable, total = count_trainable(self._model)
        return trainable / total

    @property
    def searching(self) -> bool:
        """Whether a supernet trains: never."""
        return False

    @property
    def resolution(self) -> int:
        """Side of the images of the current stage, in pixels."""
        side = self.plan.stages[self.stage].resolution
        return side if isinstance(side, int) else self._image_size

    @property
    def stride(self) -> int:
        """Pixels from one token to the next."""
        return self._tokens.stride

    def state_dict(self) -> dict[str, Any]:
        """Counter, plan, average and history; the stride follows from them."""
        return {
            "version": STATE_VERSION,
            "step": self._step,
            "plan": self.plan.to_dict(),
            "average": self._average.state_dict(),
            "history": [record.to_dict() for record in self.history],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; weights and optimizer state are loaded by the host.

        Raises:
            StateError: The state is of another version or plan.
        """
        theirs = (state_dict.get("version"), state_dict.get("plan"))
        if theirs != (STATE_VERSION, self.plan.to_dict()):
            raise StateError(
                f"the checkpoint follows another plan or version ({theirs}): resume with the same strides, boundaries "
                "and number of training steps."
            )
        self._step = state_dict["step"]
        self._average.load_state_dict(state_dict["average"], self._step)
        self._tokens.enter(self.plan.stages[self.stage].stride)
        self.history = [TokenRecord(**record) for record in state_dict["history"]]

    def _enter(self) -> None:
        check_ranks_equal(list(self._model.named_parameters()), f"on entering stage {self.stage}")
        self._tokens.enter(self.plan.stages[self.stage].stride)
        dilation = dilation_for(self.stride, self._tokens.kernel)
        self.history.append(TokenRecord(self.stage, self._step, self.stride, dilation, self.resolution))
        logger.info(
            "stage %d of %d at step %d: stride %d, dilation %d, %d tokens a side",
            self.stage + 1, self.num_stages, self._step, self.stride, dilation, self.resolution // self.stride,
        )  # fmt: skip


if TYPE_CHECKING:
    # Checked by pyright: a training loop that is typed by `Growth` takes it.
    _GROWTH: type[Growth] = RetokenGrowth
