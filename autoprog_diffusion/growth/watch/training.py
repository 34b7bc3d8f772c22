"""`TrainingWatch`: all checks of a loop together, at the places where a growth object calls them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import nn

from ..backends import accelerate as host
from ..backends.fsdp2 import reshard
from ..backends.ranks import find_ddp
from ..errors import GrowthWarning, OrderError
from ..frozen_front import FrozenFront
from ..units import Unit
from .counting import INSIDE, StepCount
from .flags import ParameterFlags
from .frozen import FrozenSamples
from .gradients import GradientWatch
from .optimizers import OptimizerWatch, parameters_in


logger = logging.getLogger(__name__)

PATIENCE = 100  # optimizer steps without a call of `growth.step`
FIRST_STEPS = 2  # of a stage, in which parameters are looked at closely


class TrainingWatch:
    """Watches the loop around a growth object: `start`, then `enter` for every stage, `check` in every `step`, `stop`.

    Every step compares `requires_grad` (some 30 us for 700 parameters) and counts. The rest is done in the first steps
    of a stage and at its end: which parameters some optimizer holds, whether gradients arrive, whether frozen weights
    have moved.

    Args:
        model: The bare model.
        accelerator: The loop's, if there is one.
        front: The model's frozen front.
    """

    def __init__(self, model: nn.Module, accelerator: Any = None, front: FrozenFront | None = None) -> None:
        self._model = model
        self._wrapped = model
        self._accelerator = accelerator
        self._growing: dict[str, nn.Parameter] = {}
        self._trains: list[nn.Parameter] = []
        self._flags = ParameterFlags(model)
        self._frozen = FrozenSamples()
        self._sampled = False
        self._gradients = GradientWatch(model, front or FrozenFront())
        self._count = StepCount(trust_gradients=True)
        self._optimizers: OptimizerWatch | None = None
        self._given: set[nn.Parameter] = set()
        self._over = False  # whether the plan's end was passed
        self._called = False  # whether the loop calls `growth.step`
        self._looks = 0  # steps of this stage that were checked
        self._held = False  # whether an optimizer is known to hold everything, in this stage

    def start(self, wrapped: nn.Module, growing: Mapping[str, nn.Parameter], optimizers: Iterable[Any]) -> None:
        """Begin to listen.

        Args:
            wrapped: What the loop calls.
            growing: Every parameter that trains in some stage, by name.
            optimizers: Those known by now.

        Raises:
            OrderError: `requires_grad` has changed since construction.
        """
        self._wrapped = wrapped
        self._flags.check_flags("between the construction of GrowthScheduler and growth.prepare")
        self._growing = dict(growing)
        self._given = set(chain.from_iterable(map(parameters_in, optimizers)))
        ddp = find_ddp(wrapped)
        # Its gradients are parts of its buckets, which stay.
        self._count = StepCount(trust_gradients=ddp is None or not ddp.gradient_as_bucket_view)
        self._optimizers = OptimizerWatch(self._growing.values(), self)

    def enter(self, blocks: Iterable[Unit], *, fresh: bool) -> None:
        """Take the model as growth has just left it.

        Args:
            blocks: The blocks of which all parameters should get a gradient.
            fresh: Whether the stage begins now. Otherwise weights may still be loaded after this.
        """
        self._flags.note()
        self._trains = [parameter for parameter in self._growing.values() if parameter.requires_grad]
        self._gradients.enter(blocks)
        self._looks = 0
        self._held = False
        self._sampled = False
        if fresh and self._count.optimizer_steps > 0:
            self._sample()

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps heard so far."""
        return self._count.optimizer_steps

    def before_step(self, held: set[nn.Parameter], optimizer: Any) -> None:
        """An optimizer is about to step: what is loaded is loaded by now."""
        if held and not self._sampled:
            self._sample()

    def after_step(self, held: set[nn.Parameter], optimizer: Any) -> None:
        """An optimizer has stepped."""
        self._count.after_step(held)
        self._gradients.after_step(held, optimizer)
        if not self._called and self._count.iterations == PATIENCE:
            self._called = True
            _warn(f"{PATIENCE} optimizer steps, and growth.step was never called: no stage is ever left; {INSIDE}")

    def check(self, *, ends: bool, over: bool = False) -> None:
        """Look at the step that was just done, before growth changes anything.

        Args:
            ends: Whether this step is the last of its stage.
            over: Whether the plan was over before this step.

        Raises:
            OrderError: The loop does something that growth cannot live with; the message says what, and the cure.
        """
        if host.accumulates_now(self._accelerator) and not self._count.stepped:
            raise OrderError(
                "growth.step was called while gradients are accumulated (accelerator.sync_gradients is False): stages "
                f"would end too early; {INSIDE}"
            )
        self._flags.check_flags("since the last growth.step or growth.prepare")
        self._count.check(self._trains)
        if over and not self._over:
            self._over = True
            logger.warning("growth.step was called after the last step of the plan: the last stage goes on.")
        self._called = True
        self._looks += 1
        self._check_optimizers()
        self._gradients.check()
        if self._looks <= FIRST_STEPS or ends:
            reshard(self._wrapped)
            self._flags.check_parameters()
            self._check_types()
            self._check_frozen()

    def accept(self) -> None:
        """Take types and frozen weights as they are now: growth itself has changed them."""
        self._flags.note()
        if self._sampled:
            self._sample()

    def stop(self, step: int, num_training_steps: int) -> None:
        """Listen no more; training ended after `step` calls of `growth.step`.

        Warns:
            GrowthWarning: That is before the end of the plan.
        """
        steps = self._count.optimizer_steps
        if step == 0 and steps > 0:
            _warn(f"fold was called after {steps} optimizer steps, but growth.step never was: no stage was left.")
        elif 0 < step < num_training_steps:
            _warn(
                f"fold was called at step {step} of {num_training_steps}, in the middle of the plan. If training ends "
                "here, all is well; to save a plain model and train on, use `with growth.folded(model):`."
            )
        self._gradients.stop()
        self._frozen.clear()
        if self._optimizers is not None:
            self._optimizers.stop()

    def _check_optimizers(self) -> None:
        """Refuse to go on where a parameter that will train is in no optimizer.

        Raises:
            OrderError: It names the first ones.
        """
        watch = self._optimizers
        if self._held or watch is None or not watch.heard:
            return
        missing = self._growing.keys() - self._names(self._given | watch.held())
        if missing:
            # Another one may step later.
            missing -= self._names(watch.held_anywhere())
        if missing:
            first = [name for name in self._growing if name in missing][:3]
            raise OrderError(
                f"no optimizer holds {len(missing)} of the {len(self._growing)} parameters that will train, first "
                f"{first}: they would never move. Build it from growth.parameters() (the model's, then the stage "
                "embedding's) before growth.prepare, not from what requires grad after it."
            )
        self._held = True

    def _names(self, parameters: set[nn.Parameter]) -> set[str]:
        """Names of those growing parameters that are among `parameters`."""
        return {name for name, parameter in self._growing.items() if parameter in parameters}

    def _check_types(self) -> None:
        """Warn where the model was cast: a pipeline of validation does that, and upstream scripts train on."""
        cast = self._flags.cast()
        if cast:
            _warn(
                f"the model was cast after growth.prepare: {cast}. Training goes on in the new type, with the "
                "optimizer's state in the old one. Give a pipeline of validation that casts a copy of the model.",
                depth=5,
            )
            if self._sampled:
                self._sample()

    def _sample(self) -> None:
        """Remember samples of what this stage has frozen."""
        reshard(self._wrapped)
        self._sampled = True
        frozen = {}
        for name, parameter in self._growing.items():
            if not parameter.requires_grad:
                frozen[name] = parameter
        self._frozen.take(frozen)

    def _check_frozen(self) -> None:
        """Refuse to go on where weights have moved although they are frozen.

        Raises:
            OrderError: It names the first ones.
        """
        moved = self._frozen.moved() if self._sampled else []
        if moved:
            raise OrderError(
                f"{len(moved)} frozen parameters have moved since this stage began, first {moved[:3]}: an optimizer "
                "that moves parameters without gradient, ema.copy_to without ema.restore, a cast to half precision "
                "and back (cast a copy of the model), or a checkpoint that was loaded over the model. Load "
                "checkpoints before growth.load_state_dict; to accept the weights as they are, call "
                "growth.load_state_dict(growth.state_dict())."
            )


def _warn(message: str, depth: int = 4) -> None:
    """Warn the caller of the growth object's method, `depth` calls away."""
    warnings.warn(message, GrowthWarning, stacklevel=depth)
